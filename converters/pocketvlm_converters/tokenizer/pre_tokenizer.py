"""How text is split before byte-pair encoding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """How text is split before byte-pair encoding, and libllama's name for it (tokenizer.ggml.pre).

    - `steps`: the `pre_tokenizer` of tokenizer.json, as `byte_bpe.steps_of` returns it.
    - `ignore_merges`: a word that is a token skips the merges. libllama derives this from the name.
    - `own_split`: libllama only approximates the split, so the runtime has its own of that name. It requires the merges
      of a tiktoken vocabulary.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    ignore_merges: bool = False
    own_split: bool = False
