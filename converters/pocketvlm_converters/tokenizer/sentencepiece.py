"""BPE over characters with a fallback to bytes, as SentencePiece makes it: GGUF model `llama`.

libllama merges two neighbours when both together are a token, highest score first, and knows no list of merges. So
the score of a token is that of its first merge. A vocabulary whose merges leave out a way to join two tokens is
refused, and merges that no order of tokens can express fail the proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from pocketvlm.errors import TokenizerError
from pocketvlm_converters.weights import Value

SPACE = "\u2581"  # stands for a space within tokens
_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_SCORE_OF_UNMERGED = -1e9  # below every merge: libllama joins such a token only where nothing else can be joined


def read_sentencepiece(
    data: Mapping[str, Any], model: Mapping[str, Any], tokens: tuple[str, ...], path: Path
) -> dict[str, Value]:
    """GGUF keys of the model; `tokens` by id. Raises TokenizerError for what libllama cannot reproduce."""
    if model.get("ignore_merges"):
        raise TokenizerError("model.ignore_merges is true, which libllama does not have with byte_fallback", path)
    missing = [token for token in _BYTES if token not in model["vocab"]]
    if missing:  # libllama ends the process where it looks for one
        raise TokenizerError(f"falls back to bytes but has no token {missing[0]}", path)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": _scores(model["merges"], tokens, path),
        **_prefix(data, path),
    }


def type_of(token: str, unknown: str | None) -> int:
    """TokenType of a token that is in the model, not an added one."""
    if token == unknown:
        return int(TokenType.UNKNOWN)
    return int(TokenType.BYTE if token in _BYTES else TokenType.NORMAL)


def _scores(merges: list[Any], tokens: tuple[str, ...], path: Path) -> tuple[float, ...]:
    ranks: dict[str, int] = {}
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    for rank, (first, second) in enumerate(pairs):
        ranks.setdefault(first + second, rank)
    allowed, known = set(pairs), set(tokens)
    for token in tokens:
        for at in range(1, len(token)):
            pair = token[:at], token[at:]
            # Among them what somebody types that is spelled like a control token.
            if pair[0] in known and pair[1] in known and pair not in allowed:
                raise TokenizerError(f"libllama would join {pair[0]!r} and {pair[1]!r}, which no merge does", path)
    return tuple(-float(ranks[token]) if token in ranks else _SCORE_OF_UNMERGED for token in tokens)


def _prefix(data: Mapping[str, Any], path: Path) -> dict[str, Value]:
    """Where a space is put before a text. Spaces must become tokens' own mark for them, and nothing else happen.

    libllama puts one before every text, or none; the runtime does the rest.
    """
    normalizer, pre_tokenizer = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
    if steps in ([], [{}]) and pre_tokenizer.get("type") == "Metaspace":
        if pre_tokenizer.get("replacement") != SPACE or pre_tokenizer.get("split", True):
            raise TokenizerError(f"pre_tokenizer {str(pre_tokenizer)[:300]} splits words, libllama does not", path)
        scheme = pre_tokenizer.get("prepend_scheme", "always")
        none: dict[str, Value] = {"tokenizer.ggml.add_space_prefix": False}
        return none if scheme == "never" else none | {"pocketvlm.space_prefix": str(scheme)}
    if steps not in ([_REPLACE], [_PREPEND, _REPLACE]):
        raise TokenizerError(f"normalizer {str(normalizer)[:300]} is not supported with byte_fallback", path)
    # A split at spaces does nothing: the normalizer has left none.
    if pre_tokenizer and (pre_tokenizer.get("type"), pre_tokenizer.get("pattern")) != ("Split", {"String": " "}):
        raise TokenizerError(f"unknown pre_tokenizer with byte_fallback: {str(pre_tokenizer)[:300]}", path)
    return {"tokenizer.ggml.add_space_prefix": len(steps) == 2}
