"""A Hugging Face checkpoint on disk, read as a stranger's: configuration, side files, safetensors."""
