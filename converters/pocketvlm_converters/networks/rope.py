"""Read rotary position embeddings from a configuration, as GGUF keys and frequency factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError, quoted
from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.weights import Value

_NEGLIGIBLE = 1e-5  # radians per position: thousands of positions make a hundredth of a turn


@dataclass(frozen=True)
class Rope:
    """`metadata`: GGUF keys without the architecture. `factors`: divisors of the frequencies, float32 [width / 2].

    `width` is the number of values of a head that are rotated, None for all.
    """

    metadata: Mapping[str, Value]
    factors: npt.NDArray[np.float32] | None = None
    width: int | None = None


def section_of(config: Section) -> Section:
    """Return `rope_parameters`, as transformers 5 writes it, or else `rope_scaling`, as it was before."""
    rope = config.section("rope_parameters")
    return rope if rope.values else config.section("rope_scaling")


def read_rope(
    config: Section,
    width: int,
    theta: float = 10000.0,
    *,
    interleaved: bool = False,
    yarn: bool = False,
    partial: bool = False,
    sections: Sequence[float] | None = None,
) -> Rope:
    """Return the positions of `config`. `theta` and `sections` are the configuration class's defaults.

    `width` is that of a head; with `partial`, that of the part of it which `rotary_width` says is rotated.

    With `mrope_section` (M-RoPE, arXiv 2409.12191), positions have sections, and libllama supports no scaling. The
    sections' frequencies follow each other, or alternate if they are `interleaved`. Dynamic scaling changes nothing
    within the trained context and is left out. `yarn` (arXiv 2309.00071) allows a scaling that only some of libllama's
    architectures support. Raises CheckpointError for a scaling that is not supported.
    """
    rope = section_of(config)
    theta = rope.number("rope_theta", config.number("rope_theta", theta, positive=True), positive=True)
    if not partial:
        rope.require("partial_rotary_factor", 1.0, 1.0)
    kind = rope.text("rope_type", rope.text("type", "default"))
    metadata: dict[str, Value] = {"rope.freq_base": theta}
    if sections is not None or rope.values.get("mrope_section") is not None:
        if kind not in ("default", "mrope"):  # older configurations use the name mrope
            raise CheckpointError(
                f"libllama does not support rope scaling {quoted(kind)} with mrope_section", config.path
            )
        rope.require("mrope_interleaved", interleaved, interleaved)
        counts = _sections(rope, width, sections)
        if interleaved:
            counts = _interleaved_sections(counts, width // 2, theta, rope)
        return Rope(metadata | {"rope.dimension_sections": [*counts, 0]})  # GGUF has a fourth section, unused
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
    known = f"default, dynamic, linear, llama3{', yarn' * yarn}"
    raise CheckpointError(f"rope scaling {quoted(kind)} is not known; known: {known}", config.path)


def rotary_width(config: Section, head: int, factor: float) -> int:
    """Return how many values of a `head` that is so wide are rotated. `factor` is the configuration class's default."""
    rope = section_of(config)
    factor = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", factor))
    width = int(head * factor)
    if not 2 <= width <= head or width % 2:
        raise rope.wrong("partial_rotary_factor", f"it rotates {width} of {head} values; expected an even number")
    return width


def _sections(rope: Section, width: int, default: Sequence[float] | None) -> list[int]:
    """Return how many frequencies belong to time, height and width."""
    sections = [int(value) for value in rope.numbers("mrope_section", None if default is None else [*default])]
    if len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != width:
        raise rope.wrong(
            "mrope_section",
            f"expected three numbers whose sum is {width // 2}, half of the values of a head that are rotated",
        )
    return sections


def _interleaved_sections(sections: list[int], count: int, theta: float, rope: Section) -> list[int]:
    """Return libllama's sections for `count` frequencies that time, height and width take in turn.

    The reference gives frequencies that height and width do not use to time; libllama would not rotate by them at all.
    So each axis gets its full third of them. This is exact in text, where all axes have the same position. In pictures
    the difference is negligible as long as those frequencies are below `_NEGLIGIBLE`.
    """
    thirds = [-(-(count - axis) // 3) for axis in range(3)]
    first_unused = min((3 * sections[axis] + axis for axis in (1, 2) if sections[axis] < thirds[axis]), default=count)
    if first_unused < count and theta ** (-first_unused / count) > _NEGLIGIBLE:
        raise rope.wrong("mrope_section", f"libllama supports at most a third of the {count} frequencies for time")
    return thirds


def _yarn(rope: Section) -> dict[str, Value]:
    """Return the keys of YaRN. libllama assumes that `mscale` is 1, and computes the factor of cosines and sines."""
    rope.require("attention_factor", None, None)
    rope.require("truncate", True, True)
    metadata: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope.number("factor", positive=True),
        "rope.scaling.original_context_length": rope.integer("original_max_position_embeddings"),
        "rope.scaling.yarn_beta_fast": rope.number("beta_fast", 32.0, positive=True),
        "rope.scaling.yarn_beta_slow": rope.number("beta_slow", 1.0, positive=True),
    }
    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):  # transformers uses both or neither
        rope.require("mscale", 1.0, 1.0)
        metadata["rope.scaling.yarn_log_multiplier"] = rope.number("mscale_all_dim", positive=True)
    return metadata


def _llama3_factors(rope: Section, theta: float, width: int) -> npt.NDArray[np.float32]:
    """Return the divisor of each frequency: `factor` for long waves, 1 for short ones, a smooth transition between."""
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, context = (rope.number(key, positive=True) for key in keys)
    if low >= high:
        raise rope.wrong("low_freq_factor", f"it must be below high_freq_factor, {high}")
    waves = 2 * math.pi * theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
