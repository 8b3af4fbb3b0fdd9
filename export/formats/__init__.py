"""Checkpoint, ONNX graphs, TensorRT engines."""
