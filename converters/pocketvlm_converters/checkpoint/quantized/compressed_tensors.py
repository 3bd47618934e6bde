"""compressed-tensors (llm-compressor): floats or integers of 8 bits, and integers packed into words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import quoted
from pocketvlm_converters.checkpoint.config import Section
from pocketvlm_converters.checkpoint.quantized.fp8 import TYPE, float8
from pocketvlm_converters.checkpoint.quantized.parts import (
    WORD,
    Format,
    Grid,
    Parts,
    grid,
    matrix,
    unpack,
)
from pocketvlm_converters.checkpoint.safetensors import Tensor

_LAYOUTS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mixed-precision", "dense")
_SCALES = ("F16", "BF16", "F32")


class CompressedTensors(Format):
    methods = ("compressed-tensors",)
    title = "compressed-tensors"
    parts = (
        *("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
        *("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale"),
    )
    unused = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")

    def __init__(self, settings: Section) -> None:
        super().__init__(settings)
        groups = settings.section("config_groups")
        schemes = [groups.section(name) for name in groups.values]
        for section in (settings, *schemes):
            layout = section.text("format", "dense")
            if layout not in _LAYOUTS:
                raise section.wrong("format", f"only {', '.join(_LAYOUTS)} are supported")
        self.schemes = tuple(scheme.section("weights") for scheme in schemes)

    def weight(self, parts: Parts) -> Tensor:
        if "weight_packed" in parts.tensors:
            return self._packed(parts)
        if parts.need("weight", TYPE, "I8").dtype == TYPE:
            return float8(parts, "weight_scale", self._blocks)
        return self._bytes(parts)

    def _bytes(self, parts: Parts) -> Tensor:
        """Integers of 8 bits, one a byte."""
        weight, zeros = parts.need("weight", "I8"), self._zeros(parts, "I8")
        scales = parts.need("weight_scale", *_SCALES)
        if len(weight.shape) != 2:
            raise parts.wrong("weight", "only matrices are supported")
        if zeros and zeros.shape != scales.shape:
            raise parts.wrong("weight_zero_point", f"expected {quoted(scales.shape)}")
        offsets = (lambda: zeros.values().reshape(matrix(zeros.shape))) if zeros else None
        return self._scaled(parts, weight.shape, lambda start, stop: weight.values()[start:stop], offsets)

    def _packed(self, parts: Parts) -> Tensor:
        """Integers of fewer bits in words of 32, less half of their range."""
        packed, sizes = parts.need("weight_packed", "I32"), parts.need("weight_shape", "I64", "I32")
        scales, zeros = parts.need("weight_scale", *_SCALES), self._zeros(parts, "I32", "I8")
        shape = tuple(sizes.values().tolist()) if sizes.shape == (2,) else ()
        if not shape or min(shape) < 1 or len(packed.shape) != 2 or packed.shape[0] != shape[0]:
            raise parts.wrong("weight_shape", f"it does not fit {packed.name}, {packed.shape}")
        outputs, inputs = shape
        bits = next((bits for bits in self._bits if -(-inputs * bits // WORD) == packed.shape[1]), 0)
        if not bits:
            given = ", ".join(map(str, self._bits)) or "none"
            raise parts.wrong(
                "weight_packed",
                f"its {packed.shape[1]} words a row hold no whole number of 2, 4 or 8 bits for {inputs} inputs; "
                f"config.json says {given}; convert the original checkpoint",
            )
        half = 1 << (bits - 1)
        count = scales.shape[1] if len(scales.shape) == 2 else 1
        packed_zeros = zeros is not None and zeros.dtype == "I32"
        if zeros and zeros.shape != ((-(-outputs * bits // WORD) if packed_zeros else outputs), count):
            raise parts.wrong("weight_zero_point", f"it does not fit {scales.name}, {scales.shape}")

        def offsets() -> npt.NDArray[Any]:
            if zeros is None:
                return np.full((1, 1), half)
            values = zeros.values()
            return unpack(values.T, bits)[:, :outputs].T if packed_zeros else values.astype(np.int16) + half

        return self._scaled(
            parts, shape, lambda start, stop: unpack(packed.values()[start:stop], bits)[:, :inputs], offsets
        )

    def _zeros(self, parts: Parts, *types: str) -> Tensor | None:
        """Return the zero points, which are needed if the configuration has nothing symmetric."""
        needed = self.schemes and not any(scheme.flag("symmetric", True) for scheme in self.schemes)
        return parts.need("weight_zero_point", *types) if needed else parts.get("weight_zero_point", *types)

    def _scaled(
        self,
        parts: Parts,
        shape: tuple[int, ...],
        codes: Callable[[int, int], npt.NDArray[Any]],
        offsets: Callable[[], npt.NDArray[Any]] | None,
    ) -> Tensor:
        """Return (codes - offsets) * scales; an offset for each scale, or one for all."""
        outputs, inputs = shape
        scales, order = parts.tensors["weight_scale"], parts.get("weight_g_idx", "I32", "I64")
        even = grid(parts, "weight_scale", (outputs, inputs), self._blocks)
        if order and order.shape != (inputs,):
            raise parts.wrong("weight_g_idx", f"expected {inputs} numbers of groups")

        def rows(start: int, stop: int) -> npt.NDArray[Any]:
            places = even if order is None else _ordered(parts, order, even, matrix(scales.shape)[1])
            block = codes(start, stop).astype(np.float32)
            if offsets is not None:
                zeros = offsets()
                block -= places.spread(zeros, start, stop) if zeros.size > 1 else zeros
            block *= places.scales(scales, start, stop)
            return block

        return parts.result(shape, parts.type_for(scales), rows)

    @property
    def _bits(self) -> tuple[int, ...]:
        """The numbers of bits that the configuration mentions and that divide a word."""
        given = {scheme.integer("num_bits", 8, most=WORD) for scheme in self.schemes}
        return tuple(sorted(given & {2, 4, 8}))

    @property
    def _blocks(self) -> tuple[tuple[int, int], ...]:
        """The sizes of blocks and of groups, which are one row high, that the configuration mentions."""
        sizes = []
        for scheme in self.schemes:
            structure = scheme.numbers("block_structure", [])
            if len(structure) == 2:
                sizes.append((int(structure[0]), int(structure[1])))
            sizes.append((1, scheme.integer("group_size", -1, least=-1)))
        return tuple(sizes)


def _ordered(parts: Parts, order: Tensor, even: Grid, groups: int) -> Grid:
    """Return the grid of groups whose inputs are not neighbours. Where all numbers are -1, they are."""
    numbers = order.values()
    if (numbers == -1).all():
        return even
    if not 0 <= numbers.min() <= numbers.max() < groups:
        raise parts.wrong("weight_g_idx", f"it has groups from {numbers.min()} to {numbers.max()}; there are {groups}")
    return Grid(even.block, numbers.astype(np.intp))
