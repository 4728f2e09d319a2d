"""Presets (MagicConfig as JSON), recipes (training arguments as YAML) and the model card template: data, no code."""
