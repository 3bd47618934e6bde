"""Convert tokenizer.json to a GGUF vocabulary, and prove that the runtime tokenizes with it as the original does."""

from pocketvlm_converters.tokenizer.proof import prove, tokens_sha256
from pocketvlm_converters.tokenizer.vocabulary import Vocabulary, check_picture_tokens, read_vocabulary

__all__ = ["Vocabulary", "check_picture_tokens", "prove", "read_vocabulary", "tokens_sha256"]
