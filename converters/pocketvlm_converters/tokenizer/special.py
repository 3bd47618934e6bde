"""Tokens with a role, such as beginning, end, infilling and padding, and the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from pocketvlm.errors import TokenizerError
from pocketvlm_converters.checkpoint.config import short
from pocketvlm_converters.checkpoint.folder import Checkpoint

_FLAGS = ("lstrip", "rstrip", "single_word")
# If GGUF names no token for one of these roles, libllama uses the token with such a spelling and makes it a control
# token. It then no longer recognises it in a user's text.
_INFILL = {
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip


@dataclass(frozen=True)
class Special:
    """`ids` by GGUF's names; `ends` are all ids that end an answer; `add_bos` and `add_eos` apply to every text."""

    ids: dict[str, int]
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool


def special(checkpoint: Checkpoint, reference: Any, ids: Mapping[str, int], path: Path) -> Special:
    """Read the special tokens. `reference` is the tokenizer of tokenizer.json, `ids` its tokens with their ids.

    Sources are tokenizer_config.json, special_tokens_map.json, generation_config.json, text_config and the tokenizer's
    post_processor. Raises TokenizerError if they contradict each other or GGUF cannot express them.
    """
    config = checkpoint.json("tokenizer_config.json", optional=True).values
    named = checkpoint.json("special_tokens_map.json", optional=True).values
    generation = checkpoint.json("generation_config.json", optional=True).values
    text_config = checkpoint.config.section("text_config").values

    known = frozenset(ids.values())

    def token(name: str) -> int | None:
        entry = config.get(f"{name}_token", named.get(f"{name}_token"))
        content = entry.get("content") if isinstance(entry, dict) else entry
        if content is None:
            number = next((s[f"{name}_token_id"] for s in (generation, text_config) if f"{name}_token_id" in s), None)
            number = number[0] if isinstance(number, list) and number else number
            if number is not None and (type(number) is not int or number not in known):
                raise TokenizerError(f"{name}_token_id {short(number)} is not in the vocabulary", path)
            return number
        if not isinstance(content, str) or content not in ids:
            raise TokenizerError(f"{name}_token {short(content)} is not in the vocabulary", path)
        return ids[content]

    eos, bos = token("eos"), token("bos")
    if eos is None:
        raise TokenizerError("has no eos_token, which is needed to end an answer", path)
    stops = generation.get("eos_token_id", text_config.get("eos_token_id"))
    others = [n for n in (stops if isinstance(stops, list) else [stops]) if n is not None and n != eos]
    ends = (eos, *others)
    if unknown := [number for number in ends if type(number) is not int or number not in known]:
        raise TokenizerError(f"eos_token_id {short(unknown[0])} is not in the vocabulary", path)
    # libllama guesses a missing eot by its spelling, and uses token 11 for a missing bos.
    roles = {"bos": eos if bos is None else bos, "eos": eos, "eot": (others or [eos])[0]}
    if len(others) > 1:
        roles["eom"] = others[1]
    roles |= {gguf: n for gguf, name in (("unknown", "unk"), ("padding", "pad")) if (n := token(name)) is not None}

    plain = reference.encode("a", add_special_tokens=False).ids
    full = reference.encode("a", add_special_tokens=True).ids
    add_bos, add_eos = full == [bos, *plain] or full == [bos, *plain, eos], full in ([*plain, eos], [bos, *plain, eos])
    if full != [*[bos] * add_bos, *plain, *[eos] * add_eos]:
        raise TokenizerError(f"its post_processor turns {plain} into {full}; it may only add bos and eos", path)
    return Special(roles, ends, bool(config.get("add_bos_token", add_bos)), bool(config.get("add_eos_token", add_eos)))


def infill(ids: Mapping[str, int], types: Sequence[int]) -> dict[str, int]:
    """Return ids for the infilling roles, so that libllama does not make control tokens of tokens that are not."""
    candidates = {role: [ids[text] for text in spellings if text in ids] for role, spellings in _INFILL.items()}
    return {
        role: numbers[0]
        for role, numbers in candidates.items()
        if any(types[number] != TokenType.CONTROL for number in numbers)
    }


def check_decoder(checkpoint: Checkpoint, added: Mapping[int, Any], path: Path) -> None:
    """Raise TokenizerError if added tokens differ from tokenizer_config.json, or need what libllama does not have."""
    for token in added.values():
        if flag := next((name for name in _FLAGS if getattr(token, name)), None):
            raise TokenizerError(f"added token {token.content!r} has {flag}, which libllama does not have", path)
    listed = checkpoint.json("tokenizer_config.json", optional=True).section("added_tokens_decoder")
    for number in listed.values:
        entry = listed.section(number).values
        token = next((token for known, token in added.items() if str(known) == number), None)
        actual = token and {"content": token.content, "special": token.special}
        if actual != {"content": entry.get("content"), "special": bool(entry.get("special"))}:
            raise TokenizerError(
                f"tokenizer_config.json has added token {number} as {entry.get('content')!r} "
                f"(special: {bool(entry.get('special'))}), tokenizer.json has {actual}",
                path,
            )


def chat_template(checkpoint: Checkpoint) -> str | None:
    """Return the chat template, or None. Files are tried in the order of transformers."""
    template: Any = checkpoint.text("chat_template.jinja")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = template or checkpoint.json(name, optional=True).values.get("chat_template")
    if isinstance(template, list):  # several templates, each with a name
        template = next(
            (item.get("template") for item in template if isinstance(item, dict) and item.get("name") == "default"),
            None,
        )
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template else None
