"""Floats of 8 bits (E4M3) with scales for blocks, for rows or for the whole weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.config import Section
from pocketvlm_converters.checkpoint.quantized.parts import EXPONENTS, Format, Parts, grid
from pocketvlm_converters.checkpoint.safetensors import Tensor

TYPE = "F8_E4M3"
_SCALES = ("weight_scale_inv", "weight_scale")  # either is multiplied with the weight


class FP8(Format):
    methods = ("fp8", "fbgemm_fp8", "modelopt")
    title = "FP8"
    parts = (
        *("weight", *_SCALES, "input_scale", "activation_scale", "activation_scale_inv"),
        *("input_scale_ub", "k_scale", "v_scale"),
    )
    unused = ("input_scale", "activation_scale", "activation_scale_inv", "input_scale_ub", "k_scale", "v_scale")

    def __init__(self, settings: Section) -> None:
        super().__init__(settings)
        settings.require("quant_algo", "FP8", "FP8")  # ModelOpt has others under the same name
        settings.require("fmt", "e4m3", "e4m3")

    def weight(self, parts: Parts) -> Tensor:
        name = next((name for name in _SCALES if name in parts.tensors), _SCALES[0])
        size = self.settings.numbers("weight_block_size", [])
        return float8(parts, name, ((int(size[0]), int(size[1])),) if len(size) == 2 else ())


def float8(parts: Parts, scale: str, blocks: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the weight of bytes `weight` and scales `scale`, for blocks of one of the sizes `blocks` if for blocks."""
    packed, scales = parts.need("weight", TYPE), parts.need(scale, "F32", "F16", "BF16", EXPONENTS)
    if len(packed.shape) != 2:
        raise parts.wrong("weight", "only matrices are supported")
    outputs, inputs = packed.shape
    places = grid(parts, scale, (outputs, inputs), blocks)

    def rows(start: int, stop: int) -> npt.NDArray[Any]:
        weights: npt.NDArray[Any] = _VALUES[packed.values()[start:stop]] * places.scales(scales, start, stop)
        return weights

    return parts.result((outputs, inputs), parts.type_for(scales), rows)


def _values() -> npt.NDArray[np.float32]:
    """Return the value of each byte: a sign, 4 bits of exponent (bias 7), 3 of mantissa; 127 is NaN, not infinity."""
    byte = np.arange(128)
    exponent, mantissa = byte >> 3, byte & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_VALUES = _values()
