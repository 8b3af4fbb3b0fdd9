"""Runners of an artifact: torch, ONNX Runtime, TensorRT, and the pipeline without torch."""
