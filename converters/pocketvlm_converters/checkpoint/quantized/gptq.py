"""GPTQ (AutoGPTQ, GPTQModel): 2, 4 or 8 bits, groups of inputs in any order (`desc_act`), everything transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.config import Section
from pocketvlm_converters.checkpoint.quantized.parts import WORD, Format, Parts, scale_floats, take_columns, unpack
from pocketvlm_converters.checkpoint.safetensors import Tensor

_BITS = (2, 4, 8)  # fields of 3 bits lie across words
_FIRST, _SECOND = "gptq", "gptq_v2"  # the first stores zero points less 1


class GPTQ(Format):
    methods = ("gptq",)
    title = "GPTQ"
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, settings: Section) -> None:
        super().__init__(settings)
        key = "checkpoint_format" if "checkpoint_format" in settings.values else "format"
        self.layout = settings.text(key, _FIRST)
        if self.layout not in (_FIRST, _SECOND):
            raise settings.wrong(key, f"only {_FIRST} and {_SECOND} are supported")

    def weight(self, parts: Parts) -> Tensor:
        packed, zeros = parts.need("qweight", "I32"), parts.need("qzeros", "I32")
        scales = parts.need("scales", "F16", "BF16", "F32")
        ordered = self.settings.flag("desc_act", False)
        order = parts.need("g_idx", "I32", "I64") if ordered else parts.get("g_idx", "I32", "I64")
        if len(packed.shape) != 2 or len(scales.shape) != 2:
            raise parts.wrong("scales", f"it does not fit {packed.name}, {packed.shape}")
        (words, outputs), groups = packed.shape, scales.shape[0]
        inputs = order.data.size if order else words * WORD // self.settings.integer("bits", most=WORD)
        bits = words * WORD // max(inputs, 1)  # of this weight; `dynamic` may give other bits to some
        if bits not in _BITS or words * WORD != inputs * bits:
            raise parts.wrong("qweight", f"{inputs} inputs do not have 2, 4 or 8 bits each")
        if scales.shape[1] != outputs or not groups or (order is None and inputs % groups):
            raise parts.wrong("scales", f"it does not fit {packed.name}, {packed.shape}")
        if zeros.shape != (groups, -(-outputs * bits // WORD)):
            raise parts.wrong("qzeros", f"expected {(groups, -(-outputs * bits // WORD))}")

        def rows(start: int, stop: int) -> npt.NDArray[Any]:
            groups_of = self._groups(parts, order, inputs, groups)
            stored = zeros.values()[:, start * bits // WORD : -(-stop * bits // WORD)].view(np.uint32)
            # Over whole words, as the subtraction was done: a zero point of 0 borrows from its neighbour.
            offsets = unpack(stored + np.uint32(_ones(bits)) if self.layout == _FIRST else stored, bits)
            codes = unpack(packed.values()[:, start:stop].T, bits).astype(np.float32)
            codes -= take_columns(offsets[:, : stop - start].T.astype(np.float32), groups_of)
            codes *= take_columns(scale_floats(scales.values()[:, start:stop], scales.dtype).T, groups_of)
            return codes

        return parts.result((outputs, inputs), parts.type_for(scales), rows)

    def _groups(self, parts: Parts, order: Tensor | None, inputs: int, groups: int) -> npt.NDArray[np.intp]:
        """Return the group of each input."""
        if order is None:
            return np.arange(inputs) // (inputs // groups)
        numbers = order.values().reshape(-1)
        if inputs and not 0 <= numbers.min() <= numbers.max() < groups:
            raise parts.wrong("g_idx", f"it has groups from {numbers.min()} to {numbers.max()}; there are {groups}")
        return numbers.astype(np.intp)


def _ones(bits: int) -> int:
    """Return a word with 1 in every field."""
    return sum(1 << at for at in range(0, WORD, bits))
