"""Turn a Hugging Face checkpoint into a bundle: `pocketvlm_converters.convert.convert`.

It needs neither torch nor transformers.
"""
