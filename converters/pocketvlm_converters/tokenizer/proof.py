"""The proof that the runtime, with the GGUF vocabulary, reads and writes text as tokenizer.json does."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from pocketvlm.errors import ModelError, TokenizerError
from pocketvlm.native.llama import Model
from pocketvlm.templates.prompt import TextSpan, isolate_control_tokens
from pocketvlm.vision.compatibility import check_files
from pocketvlm_converters.checkpoint.reference_tokenizer import FILE, load_reference
from pocketvlm_converters.tokenizer.corpus import corpus
from pocketvlm_converters.tokenizer.vocabulary import Vocabulary

_MATCHED_FIRST = (TokenType.CONTROL, TokenType.USER_DEFINED)  # found before the text is split
_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)  # no part of an answer


def prove(gguf: Path, checkpoint: Path, vocabulary: Vocabulary) -> int:
    """Compare the runtime, loading the vocabulary of `gguf`, with tokenizer.json on the whole corpus.

    Text to tokens, with special tokens once parsed and once as plain text, and every token to text. Returns the number
    of comparisons; raises TokenizerError with the text, the position and both id lists where they first differ.
    """
    path = checkpoint / FILE
    reference = load_reference(path)
    compared = 0
    try:
        with Model(gguf, vocab_only=True) as model:
            if model.n_vocab != len(vocabulary.tokens):
                raise TokenizerError(f"libllama sees {model.n_vocab} tokens of {len(vocabulary.tokens)}", path)
            control = model.control_tokens(vocabulary.types)
            for special in (True, False):
                reference.encode_special_tokens = not special
                for text in corpus(vocabulary.added):
                    if any(token in text for token in (*vocabulary.merged, *vocabulary.lost)):
                        continue  # as the vocabulary's notes say
                    wanted = reference.encode(text, add_special_tokens=False)
                    found = _tokens(model, text, special, control)
                    if found != wanted.ids:
                        raise TokenizerError(_difference(text, special, wanted, found), path)
                    compared += 1
            return compared + _prove_pieces(model, reference, vocabulary, path)
    except ModelError as error:
        raise TokenizerError(f"libllama cannot load the vocabulary made of it: {error.message}", path) from error


def tokens_sha256(gguf: Path) -> str:
    """Of the token ids of every text of the corpus. Where `prove` passed, they are the original tokenizer's."""
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
    """As a chat does it."""
    found: list[int] = []
    for span in isolate_control_tokens([TextSpan(text, special)], control):
        found += model.tokenize(span.text, special=span.special, first=not found)
    return found


def _prove_pieces(model: Model, reference: Any, vocabulary: Vocabulary, path: Path) -> int:
    compared = 0
    for token, kind in enumerate(vocabulary.types):
        if kind in _HIDDEN:
            continue
        wanted = reference.decode([token], skip_special_tokens=False)
        found = model.piece(token).decode("utf-8", "replace")
        if found not in (wanted, " " + wanted):  # some decoders take a text's first space away
            raise TokenizerError(
                f"token {token} is written as {found!r} by libllama, as {wanted!r} by tokenizer.json", path
            )
        compared += 1
    return compared


def _difference(text: str, special: bool, wanted: Any, found: list[int]) -> str:
    ids: list[int] = wanted.ids
    at = next((i for i, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b), min(len(ids), len(found)))
    position = wanted.offsets[at][0] if at < len(ids) else len(text)
    near = slice(max(0, at - 2), at + 6)
    return (
        f"the GGUF vocabulary tokenizes otherwise ({'parsing' if special else 'not parsing'} special tokens) "
        f"at character {position} of {text!r}, before {text[position : position + 20]!r}: "
        f"tokenizer.json gives {ids[near]}, libllama {found[near]} (from token {near.start} on)"
    )
