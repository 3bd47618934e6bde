"""A Hugging Face checkpoint on disk, which is untrusted: its configuration, side files and safetensors."""
