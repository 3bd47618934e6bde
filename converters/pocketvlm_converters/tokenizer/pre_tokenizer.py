"""How text is split before byte-pair encoding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """How text is split before byte-pair encoding, and libllama's name for it (tokenizer.ggml.pre).

    `steps` is the `pre_tokenizer` of tokenizer.json in the short form of `tokenizer.byte_bpe.steps_of`. libllama
    derives from the name whether a whole word that is a token skips the merges. Where it only approximates the split,
    the runtime has one of that name `of_ours`, for the merges of a tiktoken vocabulary.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    ignore_merges: bool = False
    of_ours: bool = False
