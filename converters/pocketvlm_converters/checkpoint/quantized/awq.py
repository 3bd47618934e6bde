"""AWQ in its GEMM layout (AutoAWQ): 4 bits, scales and zero points for groups of inputs, everything transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.config import Section
from pocketvlm_converters.checkpoint.quantized.parts import WORD, Format, Parts, scale_floats, unpack
from pocketvlm_converters.checkpoint.safetensors import Tensor

_BITS = 4
_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # the place in a word of each of eight neighbouring outputs
_COUNT = WORD // _BITS


class AWQ(Format):
    methods = ("awq",)
    title = "AWQ"
    parts = ("qweight", "qzeros", "scales")

    def __init__(self, settings: Section) -> None:
        super().__init__(settings)
        for key in ("bits", "w_bit"):
            settings.require(key, _BITS, _BITS)
        layout = settings.text("version", settings.text("format", "gemm"))
        if layout.lower() != "gemm":
            raise settings.wrong("version" if "version" in settings.values else "format", "only gemm is supported")

    def weight(self, parts: Parts) -> Tensor:
        packed, zeros = parts.need("qweight", "I32"), parts.need("qzeros", "I32")
        scales = parts.need("scales", "F16", "BF16", "F32")
        if len(packed.shape) != 2 or len(scales.shape) != 2:
            raise parts.wrong("scales", f"it does not fit {packed.name}, {packed.shape}")
        (inputs, words), (groups, outputs) = packed.shape, scales.shape
        if words * _COUNT != outputs or not groups or inputs % groups:
            raise parts.wrong("scales", f"it does not fit {packed.name}, {packed.shape}")
        if zeros.shape != (groups, words):
            raise parts.wrong("qzeros", f"expected {(groups, words)}")
        size = inputs // groups
        if size != self.settings.integer("group_size", size, least=-1) and groups > 1:
            raise parts.wrong("scales", f"they are for groups of {size} inputs; config.json has another group_size")

        def rows(start: int, stop: int) -> npt.NDArray[Any]:
            some = slice(start // _COUNT, -(-stop // _COUNT))
            codes, offsets = (_columns(tensor.values()[:, some]) for tensor in (packed, zeros))
            grouped = codes.astype(np.float32).reshape(groups, size, -1) - offsets.astype(np.float32)[:, None]
            grouped *= scale_floats(scales.values()[:, start:stop], scales.dtype)[:, None]
            weights: npt.NDArray[Any] = grouped.reshape(inputs, -1).T
            return weights

        return parts.result((outputs, inputs), parts.type_for(scales), rows)


def _columns(words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Return the numbers of each row of words, in the order of the outputs."""
    return unpack(words, _BITS).reshape(len(words), -1, _COUNT)[..., _ORDER].reshape(len(words), -1)
