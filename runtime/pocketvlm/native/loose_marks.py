"""Marks of turns and pictures in GGUF files of others whose token types say that they are ordinary text.

Converters that do not read the tokenizer's list of added tokens write `<start_of_turn>` as a NORMAL token. libllama
then splits it into many, and the model does not see the turns that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_OPENINGS, _CLOSINGS = "<[|]_", ">]|["
_LENGTH = range(3, 65)  # of a mark, in characters


def is_mark(text: str) -> bool:
    """Return whether a token is spelled as marks are: `<|im_end|>`, `[INST]`, `</s>`, `<turn|>`, `_<EOT>`."""
    shaped = len(text) in _LENGTH and text[0] in _OPENINGS and text[-1] in _CLOSINGS
    return shaped and any(map(str.isalnum, text)) and text.isprintable()


def loose_marks(
    texts: Sequence[str],
    is_text: Callable[[int], bool],
    tokenize: Callable[[str], Sequence[int]],
) -> dict[str, int]:
    """Return the ids of tokens that are spelled as marks and that no text is tokenized to, by their texts.

    `texts` are the spellings by id, `is_text` says which tokens their types call text, and `tokenize` reads such text.
    A token that merges can make, such as `</div>` in some vocabularies, is a word and not a mark.
    """
    return {
        text: token
        for token, text in enumerate(texts)
        if is_mark(text) and is_text(token) and not any(token in tokenize(before + text) for before in ("", "\n"))
    }
