"""Turn a Hugging Face checkpoint into a bundle: `pocketvlm_converters.convert.convert`. No torch, no transformers."""
