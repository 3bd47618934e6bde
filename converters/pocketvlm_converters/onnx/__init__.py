"""Build ONNX graphs from a checkpoint's tensors, node by node."""
