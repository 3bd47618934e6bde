"""BPE over characters with a fallback to bytes, as SentencePiece has it: GGUF model `llama`.

libllama has no list of merges: it joins any two neighbours that together are a token, the highest score first. So the
score of a token comes from the rank of its first merge. A vocabulary is refused if libllama would join two tokens that
its merges do not join. Merges that no order of tokens can express fail the proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from pocketvlm.errors import TokenizerError, quoted
from pocketvlm_converters.weights import Value

SPACE = "\u2581"  # stands for a space within tokens
_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_SCORE_OF_UNMERGED = -1e9  # below every merge, so that libllama makes such a token last


def read_sentencepiece(
    data: Mapping[str, Any], model: Mapping[str, Any], tokens: tuple[str, ...], path: Path
) -> dict[str, Value]:
    """Return the GGUF keys of the model; `tokens` by id. Raises TokenizerError for what libllama cannot reproduce."""
    if model.get("ignore_merges"):
        raise TokenizerError(
            "model.ignore_merges is not supported with byte_fallback, because libllama does not have it", path
        )
    missing = [token for token in _BYTES if token not in model["vocab"]]
    if missing:  # libllama aborts the process when it needs a missing one
        raise TokenizerError(f"has byte_fallback, but no token {missing[0]}", path)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": _scores(model["merges"], tokens, path),
        **_prefix(data, path),
    }


def type_of(token: str, unknown: str | None) -> int:
    """Return the TokenType of a token of the model, which is not an added one."""
    if token == unknown:
        return int(TokenType.UNKNOWN)
    return int(TokenType.BYTE if token in _BYTES else TokenType.NORMAL)


def _scores(merges: list[Any], tokens: tuple[str, ...], path: Path) -> tuple[float, ...]:
    """Return the score of each token."""
    ranks: dict[str, int] = {}
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    for rank, (first, second) in enumerate(pairs):
        ranks.setdefault(first + second, rank)
    allowed, known = set(pairs), set(tokens)
    for token in tokens:
        for at in range(1, len(token)):
            pair = token[:at], token[at:]
            # This covers text that a user types and that is spelled like a control token.
            if pair[0] in known and pair[1] in known and pair not in allowed:
                raise TokenizerError(
                    f"libllama would join {quoted(pair[0])} and {quoted(pair[1])}, but model.merges do not", path
                )
    return tuple(-float(ranks[token]) if token in ranks else _SCORE_OF_UNMERGED for token in tokens)


def _prefix(data: Mapping[str, Any], path: Path) -> dict[str, Value]:
    """Return the keys for the space before a text.

    libllama adds one to every text or to none; the runtime does the rest. Raises TokenizerError if the normalizer or
    pre_tokenizer does anything else than writing spaces as `SPACE`.
    """
    normalizer, pre_tokenizer = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
    if steps in ([], [{}]) and pre_tokenizer.get("type") == "Metaspace":
        if pre_tokenizer.get("replacement") != SPACE or pre_tokenizer.get("split", True):
            raise TokenizerError(
                f"pre_tokenizer {str(pre_tokenizer)[:300]} splits words, which libllama does not do", path
            )
        scheme = pre_tokenizer.get("prepend_scheme", "always")
        none: dict[str, Value] = {"tokenizer.ggml.add_space_prefix": False}
        return none if scheme == "never" else none | {"pocketvlm.space_prefix": str(scheme)}
    if steps not in ([_REPLACE], [_PREPEND, _REPLACE]):
        raise TokenizerError(f"normalizer {str(normalizer)[:300]} is not supported with byte_fallback", path)
    # A split at spaces has no effect, because the normalizer has replaced them.
    if pre_tokenizer and (pre_tokenizer.get("type"), pre_tokenizer.get("pattern")) != ("Split", {"String": " "}):
        raise TokenizerError(f"unknown pre_tokenizer with byte_fallback: {str(pre_tokenizer)[:300]}", path)
    return {"tokenizer.ggml.add_space_prefix": len(steps) == 2}
