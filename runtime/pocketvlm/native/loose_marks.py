"""Marks of turns and pictures in GGUF files of others whose token types say that they are ordinary text.

Converters that do not read the tokenizer's list of added tokens write `<start_of_turn>` as a NORMAL token. libllama
then splits it into many, and the model does not see the turns that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_OPENINGS, _CLOSINGS = "<[|]_", ">]|["
_FIRST = frozenset(_OPENINGS.encode())
_MAX_BYTES = 4  # of a character in UTF-8
_SPACE = "\u2581"  # stands for a space within tokens
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


def readable_characters(spellings: Sequence[bytes]) -> frozenset[str] | None:
    """Return the characters that a SentencePiece vocabulary has tokens for; None where bytes stand for the others.

    libllama aborts the process when it tokenizes another character.
    """
    if b"<0x0A>" in spellings:
        return None
    return frozenset(spelling.decode("utf-8", "replace") for spelling in spellings if len(spelling) <= _MAX_BYTES)


def is_word(
    token: int, text: str, tokenize: Callable[[str], Sequence[int]], readable: frozenset[str] | None = None
) -> bool:
    """Return whether merges make this token of its text, as of `</div>` in some vocabularies.

    `tokenize` reads ordinary text of `readable` characters (None: of all). A token that no text becomes can only be a
    mark.
    """
    texts = (text, f"a{text}")  # some tokenizers put a space before a text
    if readable is not None and not readable.issuperset(f"a{text}{_SPACE}"):
        return False
    return any(token in tokenize(text) for text in texts)
