"""The files of models: bundles and their manifest, headers of GGUF and ONNX files, and how much memory they need."""
