"""adapter_config.json: how strong a LoRA adapter is, and what it was made for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pocketvlm.errors import CheckpointError, quoted
from pocketvlm_converters.checkpoint.config import Section

# Ways to initialize that leave the base model as it is. Others, such as PiSSA, move a part of it into the adapter.
_SOUND_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# Settings with which an adapter is more than a change of weights, or a change of another form.
_OTHER_FORMS = (
    *("use_qalora", "alora_invocation_tokens", "layer_replication", "arrow_config", "use_bdlora", "kasa_config"),
    *("monteclora_config", "velora_config", "target_parameters", "megatron_config"),
)
# Patterns come from a file: more repetitions than these could take forever to match.
_MAX_PATTERN, _MAX_REPEATS = 500, 2
_REPEATS = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MAX_TOKEN = 1 << 24


@dataclass(frozen=True)
class Settings:
    """What an adapter's configuration says about its weights.

    - `alpha` with `alphas`, which are those of the modules that match a pattern.
    - `rank_stabilized`: the scale is alpha / sqrt(rank), not alpha / rank.
    - `transposed`: the base's matrices are [inputs, outputs].
    - `keeps_tied`: a change of the embedding is one of the tied head, too.
    - `tokens`: of modules, by the ends of their names, the rows that the adapter replaces.
    - `base`, `base_class`: name and class of the model that it was trained on, as far as they are known.
    """

    alpha: float
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    rank_stabilized: bool
    transposed: bool
    keeps_tied: bool
    tokens: Mapping[str, tuple[int, ...]]
    base: str
    base_class: str

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of a module's matrices. `module` is its name as the adapter has it."""
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_settings(config: Section) -> Settings:
    """Read adapter_config.json. Raises CheckpointError, naming the setting, for what cannot be merged."""
    config.require("peft_type", "LORA", "LORA")
    start = config.values.get("init_lora_weights")
    if start is not None and start not in _SOUND_STARTS:
        raise config.wrong(
            "init_lora_weights", "it changes the base model, too; save the adapter as plain LoRA, as PEFT describes"
        )
    for key in _OTHER_FORMS:
        if config.values.get(key):
            raise config.wrong(key, "an adapter with it cannot be merged")
    return Settings(
        alpha=config.number("lora_alpha"),
        alphas=tuple(_patterns(config.section("alpha_pattern"))),
        rank_stabilized=config.flag("use_rslora", False),
        transposed=config.flag("fan_in_fan_out", False),
        keeps_tied=config.flag("ensure_weight_tying", False),
        tokens=_tokens(config),
        base=config.text("base_model_name_or_path", ""),
        base_class=config.section("auto_mapping").text("base_model_class", ""),
    )


def _patterns(alphas: Section) -> list[tuple[re.Pattern[str], float]]:
    """Compile the patterns as PEFT matches them: with the end of a module's name, from a dot."""
    patterns = []
    for key in alphas.values:
        repeats = len(_REPEATS.findall(key))
        if len(key) > _MAX_PATTERN or repeats > _MAX_REPEATS or _REPEATED_GROUP.search(key):
            raise CheckpointError(
                f"alpha_pattern has {quoted(key)}; a pattern may repeat characters twice", alphas.path
            )
        try:
            patterns.append((re.compile(rf"(.*\.)?({key})$"), alphas.number(key)))
        except re.error as error:
            raise CheckpointError(f"alpha_pattern has {quoted(key)}: {error}", alphas.path) from None
    return patterns


def _tokens(config: Section) -> dict[str, tuple[int, ...]]:
    """Return the rows that are trained alone. A list is that of the embedding."""
    given = config.values.get("trainable_token_indices")
    if isinstance(given, list):
        given = {"embed_tokens": given}
    if not given:
        return {}
    rows = given.items() if isinstance(given, dict) else ()
    if not rows or any(not _is_rows(indexes) for _, indexes in rows):
        raise config.wrong("trainable_token_indices", "expected numbers of tokens, each once")
    return {name: tuple(indexes) for name, indexes in rows}


def _is_rows(indexes: object) -> bool:
    if not isinstance(indexes, list) or len({*map(str, indexes)}) != len(indexes):
        return False
    return all(type(index) is int and 0 <= index < _MAX_TOKEN for index in indexes)
