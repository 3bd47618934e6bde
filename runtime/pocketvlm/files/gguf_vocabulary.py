"""Check the vocabulary of a GGUF language model before libllama reads it.

libllama aborts the process where two tokens have one spelling (an assertion), and where it needs the token of a byte
that is missing (a C++ exception that nothing catches). Sources: llama-vocab.cpp of the version in `library.WANTED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pocketvlm.errors import ModelFormatError, quoted
from pocketvlm.files.gguf_header import STRING, GGUFHeader, LazyArray

TOKENIZERS = ("llama", "gpt2")  # values of `MODEL` that the converters write; others are checked in part
MODEL = "tokenizer.ggml.model"
_TOKENS, _TYPES, _SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores"
_MERGES = "tokenizer.ggml.merges"
# Chat models do not have these, and libllama does not bear other models' vocabularies in them: it loops forever over
# one that is called rwkv.
_UNUSABLE = ("test", "bert", "t5", "rwkv")
_NO_VOCABULARY = ("no_vocab", "none")
_BYTE_FALLBACK = "llama"  # the tokenizer that writes unknown characters as the tokens of their bytes
_BYTE = 6  # LLAMA_TOKEN_TYPE_BYTE
_BYTES = [b"<0x%02X>" % byte for byte in range(256)]


def check_vocabulary(header: GGUFHeader) -> None:
    """Raise ModelFormatError unless the entries of the vocabulary fit each other.

    A file may say that it has no vocabulary. Its memory can be predicted; `require_vocabulary` refuses to load it.
    """
    tokenizer = header.metadata.get(MODEL)
    if not isinstance(tokenizer, str):
        raise ModelFormatError(f"{MODEL} is missing or not text, so the file has no tokenizer", header.path)
    if tokenizer in _NO_VOCABULARY:
        return
    if tokenizer in _UNUSABLE:
        raise ModelFormatError(f"{MODEL} is {quoted(tokenizer)}: such a model cannot chat", header.path)
    tokens = header.texts(_TOKENS)
    if not tokens:
        raise ModelFormatError(f"{_TOKENS} is missing, empty or not a list of texts", header.path)
    for key in (_TYPES, _SCORES):
        if key in header.metadata and (count := _count(header.metadata[key])) < len(tokens):
            raise ModelFormatError(f"{key} has {count:,} entries for {len(tokens):,} tokens", header.path)
    merges = header.metadata.get(_MERGES)
    if merges is not None and not (isinstance(merges, LazyArray) and merges.type == STRING):
        raise ModelFormatError(f"{_MERGES} is not a list of texts", header.path)
    spellings = _as_read(tokens)
    _check_unique(spellings, header)
    _check_bytes(spellings, header, needed=tokenizer == _BYTE_FALLBACK)


def require_vocabulary(header: GGUFHeader) -> None:
    """Raise ModelFormatError for a checked file without a vocabulary: libllama ends the process that tokenizes."""
    if header.metadata[MODEL] in _NO_VOCABULARY:
        raise ModelFormatError(f"{MODEL} is {header.metadata[MODEL]!r}: such a model cannot chat", header.path)


def _count(value: object) -> int:
    """Return the length of an array of the metadata; 0 for another value."""
    return value.count if isinstance(value, LazyArray) else len(value) if isinstance(value, list) else 0


def _as_read(tokens: Sequence[bytes]) -> list[bytes]:
    """Return the tokens as libllama has them: up to a NUL, and with a name for each empty one."""
    if all(tokens) and b"\0" not in b"".join(tokens):
        return list(tokens)
    cut = (token.partition(b"\0")[0] for token in tokens)
    return [token or b"[EMPTY_%d]" % number for number, token in enumerate(cut)]


def _check_unique(spellings: Sequence[bytes], header: GGUFHeader) -> None:
    if len(set(spellings)) == len(spellings):
        return
    first: dict[bytes, int] = {}
    for number, spelling in enumerate(spellings):
        if (other := first.setdefault(spelling, number)) != number:
            text = spelling[:40].decode("utf-8", "replace")
            raise ModelFormatError(f"{_TOKENS} has {quoted(text)} twice, as entries {other} and {number}", header.path)


def _check_bytes(spellings: Sequence[bytes], header: GGUFHeader, *, needed: bool) -> None:
    """Check the tokens that stand for a byte: how they are spelled, and where they are `needed`, that all are there."""
    known = frozenset(_BYTES)
    for number in _positions(header, _BYTE):
        if number < len(spellings) and spellings[number].upper().replace(b"X", b"x") not in known:
            text = spellings[number][:40].decode("utf-8", "replace")
            raise ModelFormatError(
                f"{_TYPES} calls entry {number}, {quoted(text)}, a byte; expected e.g. <0x0A>", header.path
            )
    if not needed:
        return
    there = set(spellings)
    for byte, spelling in enumerate(_BYTES):
        if spelling not in there and bytes([byte]) not in there:
            raise ModelFormatError(
                f"{_TOKENS} lacks {spelling.decode()}, so some text cannot be tokenized", header.path
            )


def _positions(header: GGUFHeader, kind: int) -> Iterable[int]:
    types = header.array(_TYPES)
    return (number for number, entry in enumerate(types) if entry == kind) if kind in types else ()
