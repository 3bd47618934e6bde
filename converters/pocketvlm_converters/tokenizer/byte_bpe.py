"""Byte-level BPE: GGUF model `gpt2`.

tokenizer.json describes how text is split by a regex; GGUF names a split that libllama has built in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pocketvlm.errors import TokenizerError, quoted, shortened
from pocketvlm_converters.tokenizer.pre_tokenizer import PreTokenizer
from pocketvlm_converters.weights import Value

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _REST = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGITS_3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_DIGITS_1 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}"
_BYTES = ("ByteLevel", "bytes")
# Splits that many families share. An unknown one is refused: a wrong split degrades answers without any error.
_PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (("ByteLevel", "words"),)),
    PreTokenizer("smollm", (("Digits", "single"), ("ByteLevel", "words"))),
    PreTokenizer("llama-bpe", (("Split", _DIGITS_3, "Isolated"), _BYTES), ignore_merges=True),
    PreTokenizer("smaug-bpe", (("Split", _DIGITS_3, "Isolated"), _BYTES)),
    PreTokenizer(
        "deepseek-v3",
        (
            ("Split", r"\p{N}{1,3}", "Isolated"),
            ("Split", "[一-龥\u3040-ゟ゠-ヿ]+", "Isolated"),
            (
                "Split",
                "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
                "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
                "Isolated",
            ),
            _BYTES,
        ),
    ),
    PreTokenizer("qwen2", (("Split", _DIGITS_1, "Isolated"), _BYTES)),
)
# Normalizers that the runtime applies before libllama, which has none.
_NORMALIZERS = ("NFC",)


def read_byte_bpe(
    data: Mapping[str, Any], model: Mapping[str, Any], extra: Iterable[PreTokenizer], path: Path
) -> dict[str, Value]:
    """Return the GGUF keys of the model. Raises TokenizerError for what the runtime cannot reproduce.

    `extra` are the splits that only this family has.
    """
    split = _pre_tokenizer(data.get("pre_tokenizer"), bool(model.get("ignore_merges")), extra, path)
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split.name,
        "tokenizer.ggml.merges": tuple(m if isinstance(m, str) else " ".join(m) for m in model["merges"]),
        "tokenizer.ggml.add_space_prefix": False,
    }
    normalizer = data.get("normalizer")
    if normalizer and normalizer != {"type": "Sequence", "normalizers": []}:
        if normalizer.get("type") not in _NORMALIZERS:
            raise TokenizerError(
                f"normalizer {quoted(normalizer.get('type'))} is not supported; supported: {', '.join(_NORMALIZERS)}",
                path,
            )
        metadata["pocketvlm.normalizer"] = normalizer["type"]
    if split.own_split:
        _check_tiktoken(data, model, path)
        metadata["pocketvlm.split"] = split.name
    return metadata


def _check_tiktoken(data: Mapping[str, Any], model: Mapping[str, Any], path: Path) -> None:
    """Raise TokenizerError unless the merges are those of a tiktoken vocabulary.

    Every split of a token into two tokens must be a merge, in the order of the tokens, and every byte must be a token.
    """
    added = {str(token["content"]) for token in data.get("added_tokens", ())}
    ids: dict[str, int] = {text: number for text, number in model["vocab"].items() if text not in added}
    splits = ((text, at) for text in ids for at in range(1, len(text)))
    expected = sorted(
        (ids[text], ids[text[:at]], ids[text[at:]]) for text, at in splits if text[:at] in ids and text[at:] in ids
    )
    pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(ids.get(one + other), ids.get(one), ids.get(other)) for one, other in pairs]
    if merges != expected:
        raise TokenizerError(
            "model.merges are not those of a tiktoken vocabulary, which this pre_tokenizer requires", path
        )
    if sum(len(text) == 1 for text in ids) < 256:
        raise TokenizerError("model.vocab must have a token for each of the 256 bytes", path)


def steps_of(pre_tokenizer: Any) -> tuple[tuple[str, ...], ...]:
    """Return the steps of the `pre_tokenizer` of a tokenizer.json: one tuple per step, its type and its settings."""
    if not isinstance(pre_tokenizer, dict):
        return ()
    kind = str(pre_tokenizer.get("type"))
    if kind == "Sequence":
        return tuple(step for part in pre_tokenizer.get("pretokenizers", ()) for step in steps_of(part))
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space", True):
        return ((kind, "words" if pre_tokenizer.get("use_regex", True) else "bytes"),)
    if kind == "Digits":
        return ((kind, "single" if pre_tokenizer.get("individual_digits") else "runs"),)
    if kind == "Split" and "Regex" in pre_tokenizer.get("pattern", {}) and not pre_tokenizer.get("invert"):
        return ((kind, pre_tokenizer["pattern"]["Regex"], str(pre_tokenizer.get("behavior"))),)
    return ((kind, json.dumps(pre_tokenizer, sort_keys=True)),)


def _pre_tokenizer(config: Any, ignore_merges: bool, extra: Iterable[PreTokenizer], path: Path) -> PreTokenizer:
    steps = steps_of(config)
    for known in (*extra, *_PRE_TOKENIZERS):
        if known.steps == steps and known.ignore_merges == ignore_merges:
            return known
    text = json.dumps(config, ensure_ascii=False)
    raise TokenizerError(f"unknown pre_tokenizer (ignore_merges {str(ignore_merges).lower()}): {shortened(text)}", path)
