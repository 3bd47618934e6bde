"""Prove that the runtime, with the GGUF vocabulary, reads and writes text as tokenizer.json does."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from pocketvlm.errors import ModelError, TokenizerError, quoted
from pocketvlm.native.llama import Model
from pocketvlm.templates.prompt import TextSpan, isolate_control_tokens
from pocketvlm.vision.compatibility import check_files
from pocketvlm_converters.checkpoint.reference_tokenizer import FILE, decode, encode, load_reference
from pocketvlm_converters.tokenizer.corpus import corpus
from pocketvlm_converters.tokenizer.vocabulary import Vocabulary

_MATCHED_FIRST = (TokenType.CONTROL, TokenType.USER_DEFINED)  # types that are matched before the text is split
_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)  # types that never appear in an answer


def prove(gguf: Path, checkpoint: Path, vocabulary: Vocabulary) -> int:
    """Compare the runtime, loading the vocabulary of `gguf`, with tokenizer.json on the whole corpus.

    This compares text to tokens, once with special tokens parsed and once as plain text, and every token to text.
    Return the number of comparisons. Raises TokenizerError at the first difference, with its text, position and ids.
    """
    path = checkpoint / FILE
    reference = load_reference(path)
    compared = 0
    try:
        with Model(gguf, vocab_only=True) as model:
            if model.n_vocab != len(vocabulary.tokens):
                raise TokenizerError(f"libllama reads {model.n_vocab} tokens, not {len(vocabulary.tokens)}", path)
            control = model.control_tokens(vocabulary.types)
            for special in (True, False):
                reference.encode_special_tokens = not special
                for text in corpus(vocabulary.added):
                    if any(token in text for token in (*vocabulary.merged, *vocabulary.lost)):
                        continue  # differs on purpose: see the notes of the vocabulary
                    expected = encode(reference, text, path)
                    ids = _tokens(model, text, special, control)
                    if ids != expected.ids:
                        raise TokenizerError(_difference(text, special, expected, ids), path)
                    compared += 1
            return compared + _prove_pieces(model, reference, vocabulary, path)
    except ModelError as error:
        raise TokenizerError(f"libllama cannot load the converted vocabulary: {error.message}", path) from error


def tokens_sha256(gguf: Path) -> str:
    """Return the SHA-256 of the token ids of the corpus. After `prove`, they are those of the original tokenizer."""
    types: list[int] = check_files(gguf, None, None).model.array("tokenizer.ggml.token_type")
    digest = hashlib.sha256()
    with Model(gguf, vocab_only=True) as model:
        control = model.control_tokens(types)
        added = [model.token_text(token) for token, kind in enumerate(types) if kind in _MATCHED_FIRST]
        for text in corpus(added):
            for special in (True, False):
                ids = np.array(_tokens(model, text, special, control), "<i4")
                digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return digest.hexdigest()


def _tokens(model: Model, text: str, special: bool, control: Collection[str]) -> list[int]:
    """Tokenize `text` as a chat does."""
    ids: list[int] = []
    for span in isolate_control_tokens([TextSpan(text, special)], control):
        ids += model.tokenize(span.text, special=span.special, first=not ids)
    return ids


def _prove_pieces(model: Model, reference: Any, vocabulary: Vocabulary, path: Path) -> int:
    """Compare the text of every token; return the number of comparisons."""
    compared = 0
    for token, kind in enumerate(vocabulary.types):
        if kind in _HIDDEN:
            continue
        expected = decode(reference, token, path)
        piece = model.piece(token).decode("utf-8", "replace")
        if piece not in (expected, " " + expected):  # some decoders drop the first space of a text
            raise TokenizerError(
                f"token {token} is {quoted(piece)} in libllama, but {quoted(expected)} in tokenizer.json", path
            )
        compared += 1
    return compared


def _difference(text: str, special: bool, expected: Any, ids: list[int]) -> str:
    expected_ids: list[int] = expected.ids
    first = next(
        (i for i, (a, b) in enumerate(zip(expected_ids, ids, strict=False)) if a != b), min(len(expected_ids), len(ids))
    )
    position = expected.offsets[first][0] if first < len(expected_ids) else len(text)
    near = slice(max(0, first - 2), first + 6)
    return (
        f"the GGUF vocabulary tokenizes differently ({'parsing' if special else 'not parsing'} special tokens) "
        f"at character {position} of {quoted(text)}, before {quoted(text[position : position + 20])}: "
        f"tokenizer.json gives {expected_ids[near]}, libllama {ids[near]} (from token {near.start} on)"
    )
