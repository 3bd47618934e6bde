"""Rotary position embeddings as configurations describe them -> GGUF keys and frequency factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.config import short
from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.weights import Value

_SLOW = 1e-5  # radians from one place to the next: a hundredth of a turn takes thousands of places


@dataclass(frozen=True)
class Rope:
    """`metadata`: GGUF keys without the architecture; `factors` float32 [width / 2] divide frequencies."""

    metadata: Mapping[str, Value]
    factors: npt.NDArray[np.float32] | None = None


def section_of(config: Section) -> Section:
    """Transformers 5 writes `rope_parameters`; before that there were `rope_theta` and `rope_scaling`."""
    rope = config.section("rope_parameters")
    return rope if rope.values else config.section("rope_scaling")


def read_rope(
    config: Section, width: int, theta: float = 10000.0, *, interleaved: bool = False, yarn: bool = False
) -> Rope:
    """`width` is that of a head, `theta` the configuration class's default.

    With `mrope_section` (M-RoPE, arXiv 2409.12191), positions have sections; libllama then takes no scaling. Their
    frequencies follow each other, or are dealt in turn where they are `interleaved`. Scaling of kind dynamic changes
    nothing within the trained context and is left out. `yarn` (arXiv 2309.00071) is known to some of libllama's
    architectures only. Raises CheckpointError for one that is not known.
    """
    rope = section_of(config)
    theta = rope.number("rope_theta", config.number("rope_theta", theta, positive=True), positive=True)
    rope.require("partial_rotary_factor", 1.0, 1.0)
    kind = rope.text("rope_type", rope.text("type", "default"))
    metadata: dict[str, Value] = {"rope.freq_base": theta}
    if rope.values.get("mrope_section") is not None:
        if kind not in ("default", "mrope"):  # older configurations call it by its own name
            raise CheckpointError(f"rope scaling {short(kind)} with mrope_section is not in libllama", config.path)
        rope.require("mrope_interleaved", interleaved, interleaved)
        sections = _sections(rope, width)
        if interleaved:
            sections = _dealt(sections, width // 2, theta, rope)
        return Rope(metadata | {"rope.dimension_sections": [*sections, 0]})  # GGUF has a fourth, unused
    if kind in ("default", "dynamic"):
        return Rope(metadata)
    if kind == "linear":
        return Rope(
            metadata | {"rope.scaling.type": "linear", "rope.scaling.factor": rope.number("factor", positive=True)},
        )
    if kind == "llama3":
        return Rope(metadata, _llama3_factors(rope, theta, width))
    if kind == "yarn" and yarn:
        return Rope(metadata | _yarn(rope))
    known = f"default, dynamic, linear{', yarn' * yarn} and llama3"
    raise CheckpointError(f"rope scaling {short(kind)} is not known; {known} are", config.path)


def _sections(rope: Section, width: int) -> list[int]:
    """How many frequencies go by time, height and width."""
    sections = [int(value) for value in rope.numbers("mrope_section")]
    if len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != width:
        raise rope.wrong("mrope_section", f"three numbers are needed, {width // 2} together: half of a head's width")
    return sections


def _dealt(sections: list[int], count: int, theta: float, rope: Section) -> list[int]:
    """Of `count` frequencies dealt in turn to time, height and width, how many each axis may have in libllama.

    The reference gives those that height and width leave to time; libllama does not turn them at all. It is told that
    none are left: turned by height or width they are right in all texts, and so slow that pictures do not tell.
    """
    whole = [-(-(count - axis) // 3) for axis in range(3)]
    left = min((3 * sections[axis] + axis for axis in (1, 2) if sections[axis] < whole[axis]), default=count)
    if left < count and theta ** (-left / count) > _SLOW:
        raise rope.wrong("mrope_section", f"libllama gives time no more than every third of {count} frequencies")
    return whole


def _yarn(rope: Section) -> dict[str, Value]:
    """libllama takes `mscale` to be 1 and computes what the angles' cosines and sines are multiplied by."""
    rope.require("attention_factor", None, None)
    rope.require("truncate", True, True)
    found: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope.number("factor", positive=True),
        "rope.scaling.original_context_length": rope.integer("original_max_position_embeddings"),
        "rope.scaling.yarn_beta_fast": rope.number("beta_fast", 32.0, positive=True),
        "rope.scaling.yarn_beta_slow": rope.number("beta_slow", 1.0, positive=True),
    }
    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):  # else transformers uses neither
        rope.require("mscale", 1.0, 1.0)
        found["rope.scaling.yarn_log_multiplier"] = rope.number("mscale_all_dim", positive=True)
    return found


def _llama3_factors(rope: Section, theta: float, width: int) -> npt.NDArray[np.float32]:
    """By how much each frequency is divided: long waves by `factor`, short ones not at all, smoothly between."""
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, context = (rope.number(key, positive=True) for key in keys)
    if low >= high:
        raise rope.wrong("low_freq_factor", f"it must be below high_freq_factor, {high}")
    waves = 2 * math.pi * theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
