"""Marks of turns and pictures in GGUF files of others whose token types say that they are ordinary text.

Converters that do not read the tokenizer's list of added tokens write `<start_of_turn>` as a NORMAL token. libllama
then splits it into many, and the model does not see the turns that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_OPENINGS, _CLOSINGS = "<[|]_", ">]|["
_FIRST = frozenset(_OPENINGS.encode())
_LENGTH = range(3, 65)  # of a mark, in characters


def is_mark(text: str) -> bool:
    """Return whether a token is spelled as marks are: `<|im_end|>`, `[INST]`, `</s>`, `<turn|>`, `_<EOT>`."""
    shaped = len(text) in _LENGTH and text[0] in _OPENINGS and text[-1] in _CLOSINGS
    return shaped and any(map(str.isalnum, text)) and text.isprintable()


def marked_text(raw: bytes | None) -> str | None:
    """Return the spelling of a token if it is that of a mark; None for most tokens, at once."""
    if not raw or raw[0] not in _FIRST:
        return None
    text = raw.decode("utf-8", "replace")
    return text if is_mark(text) else None


def is_word(token: int, text: str, tokenize: Callable[[str], Sequence[int]]) -> bool:
    """Return whether merges make this token of its text, as of `</div>` in some vocabularies.

    `tokenize` reads ordinary text. A token that no text becomes can only be a mark.
    """
    return any(token in tokenize(before + text) for before in ("", "\n"))
