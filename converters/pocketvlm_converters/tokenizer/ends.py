"""Which tokens end an answer. Checkpoints name them in up to four files, and not every file names all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketvlm.errors import ModelError, TokenizerError, quoted
from pocketvlm.templates.prompt import ChatTemplate
from pocketvlm.templates.turn_end import text_behind_answer
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.checkpoint.reference_tokenizer import encode

_KEY = "eos_token_id"


def generation_sections(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], ...]:
    """Return the settings of generation, from the file that transformers asks first to that which it asks last."""
    generation = checkpoint.json("generation_config.json", optional=True)
    return tuple(
        section.values for section in (generation, checkpoint.config, checkpoint.config.section("text_config"))
    )


def end_tokens(
    sections: Sequence[Mapping[str, Any]],
    eos: int,
    others: Mapping[str, int | None],
    known: Collection[int],
    reference: Any,
    template: str | None,
    path: Path,
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return all ids that end an answer, `eos` first, and notes for the user.

    They are `eos`, those of all `sections`, and the token with which the chat template closes an answer. `others` has
    the ids for bos, unk and pad, `known` all of the vocabulary, `reference` is the tokenizer of tokenizer.json. Raises
    TokenizerError if the first section with ends has an id that is not known.
    """
    never = {others["bos"], others["unk"]} - {eos}
    added = {n: token for n, token in reference.get_added_tokens_decoder().items() if n in known and n not in never}
    ends, first = [eos], True
    for section in sections:
        value = section.get(_KEY)
        numbers = [number for number in (value if isinstance(value, list) else [value]) if number is not None]
        for number in numbers:
            if type(number) is int and number in known:
                # The other sections may have their class's defaults, which are not meant for this vocabulary.
                if first or (number in added and number != others["pad"]):
                    ends.append(number)
            elif first:
                raise TokenizerError(f"{_KEY} {quoted(number)} is not in the vocabulary", path)
        first = first and not numbers
    notes: list[str] = []
    closing = _closing_token(reference, template, reference.id_to_token(eos), path)
    if closing in added and closing not in ends:
        ends.append(closing)
        notes.append(
            f"answers also end at {added[closing].content}, with which the chat template closes them; "
            f"no file names it in {_KEY}"
        )
    return tuple(dict.fromkeys(ends)), tuple(notes)


def _closing_token(reference: Any, template: str | None, eos: str, path: Path) -> int:
    """Return the first token that the template writes behind an answer, which may be of ordinary text; -1 for none."""
    try:
        text = text_behind_answer(ChatTemplate(template, eos=eos)) if template else ""
    except ModelError:  # reported where the template is used
        return -1
    return next(iter(encode(reference, text, path).ids), -1)
