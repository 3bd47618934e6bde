"""Quantization types, and the importance matrices that some of them need."""
