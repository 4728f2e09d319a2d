"""Presets, and models as folders that the Hub takes: export, card, conversion, ONNX, publication."""
