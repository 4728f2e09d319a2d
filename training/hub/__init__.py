"""Presets, and model folders for the Hub: export, card, conversion, ONNX, verification and publication."""
