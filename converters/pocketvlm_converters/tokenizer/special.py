"""Tokens with a role, such as beginning, end, infilling and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from pocketvlm.errors import TokenizerError, quoted
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.checkpoint.reference_tokenizer import encode
from pocketvlm_converters.tokenizer.ends import end_tokens, generation_sections

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
    """`ids` by GGUF's names; `ends` are all ids that end an answer; `add_bos` and `add_eos` apply to every text.

    `notes` are remarks for the user.
    """

    ids: dict[str, int]
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    notes: tuple[str, ...]


def special(
    checkpoint: Checkpoint, reference: Any, ids: Mapping[str, int], template: str | None, path: Path
) -> Special:
    """Read the special tokens. `reference` is the tokenizer of tokenizer.json, `ids` its tokens with their ids.

    Sources are tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and the tokenizer's
    post_processor. `template` is the chat template. Raises TokenizerError if the files contradict each other or GGUF
    cannot express them.
    """
    config = checkpoint.json("tokenizer_config.json", optional=True).values
    named = checkpoint.json("special_tokens_map.json", optional=True).values
    generated = generation_sections(checkpoint)
    known = frozenset(ids.values())

    def token(name: str) -> int | None:
        entry = config.get(f"{name}_token", named.get(f"{name}_token"))
        content = entry.get("content") if isinstance(entry, dict) else entry
        if content is None:
            sections = generated if name == "eos" else (generated[0], generated[-1])  # not config.json's top level
            number = next((n for s in sections if (n := s.get(f"{name}_token_id")) is not None), None)
            number = number[0] if isinstance(number, list) and number else number
            if number is not None and (type(number) is not int or number not in known):
                raise TokenizerError(f"{name}_token_id {quoted(number)} is not in the vocabulary", path)
            return number
        if not isinstance(content, str) or content not in ids:
            raise TokenizerError(f"{name}_token {quoted(content)} is not in the vocabulary", path)
        return ids[content]

    eos, bos = token("eos"), token("bos")
    if eos is None:
        raise TokenizerError("has no eos_token, which is needed to end an answer", path)
    others = {name: token(name) for name in ("bos", "unk", "pad")}
    ends, notes = end_tokens(generated, eos, others, known, reference, template, path)
    # libllama guesses a missing eot by its spelling, and uses token 11 for a missing bos.
    roles = {"bos": eos if bos is None else bos, "eos": eos, "eot": (*ends, eos)[1]}
    if len(ends) > 2:
        roles["eom"] = ends[2]
    roles |= {gguf: n for gguf, name in (("unknown", "unk"), ("padding", "pad")) if (n := others[name]) is not None}

    plain = encode(reference, "a", path).ids
    full = encode(reference, "a", path, post_process=True).ids
    add_bos, add_eos = full == [bos, *plain] or full == [bos, *plain, eos], full in ([*plain, eos], [bos, *plain, eos])
    if full != [*[bos] * add_bos, *plain, *[eos] * add_eos]:
        raise TokenizerError(f"its post_processor turns {plain} into {full}; it may only add bos and eos", path)
    adds = bool(config.get("add_bos_token", add_bos)), bool(config.get("add_eos_token", add_eos))
    return Special(roles, ends, *adds, notes)


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
            raise TokenizerError(f"added token {quoted(token.content)} has {flag}, which libllama does not have", path)
    listed = checkpoint.json("tokenizer_config.json", optional=True).section("added_tokens_decoder")
    for number in listed.values:
        entry = listed.section(number).values
        token = next((token for known, token in added.items() if str(known) == number), None)
        actual = token and {"content": token.content, "special": token.special}
        if actual != {"content": entry.get("content"), "special": bool(entry.get("special"))}:
            raise TokenizerError(
                f"tokenizer_config.json has added token {number} as {quoted(entry.get('content'))} "
                f"(special: {bool(entry.get('special'))}), tokenizer.json has {actual}",
                path,
            )
