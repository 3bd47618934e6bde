"""Turn a Hugging Face checkpoint into a bundle. Needs neither torch nor transformers."""

from pocketvlm_converters.convert import convert

__all__ = ["convert"]
