"""bitsandbytes: NF4 and FP4 with a scale for each block of weights, which may be quantized too, and LLM.int8()."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.config import Section, parse_object
from pocketvlm_converters.checkpoint.quantized.parts import TYPES, Format, Parts, Rows
from pocketvlm_converters.checkpoint.safetensors import Tensor

_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
_STATE_LIMIT = 64 << 10  # bytes
_BYTES = ("U8", "I8", "F32", "F16", "BF16")  # FSDP wants the bytes in the model's type


class BitsAndBytes(Format):
    methods = ("bitsandbytes",)
    title = "bitsandbytes"
    parts = (
        *("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
        *(*_STATES, "SCB", "weight_format"),
    )

    def weight(self, parts: Parts) -> Tensor:
        return _eight_bits(parts) if "SCB" in parts.tensors else _four_bits(parts)


def _eight_bits(parts: Parts) -> Tensor:
    packed, scales, layout = parts.need("weight", "I8"), parts.need("SCB", "F32"), parts.get("weight_format", "U8")
    if len(packed.shape) != 2 or scales.shape != packed.shape[:1]:
        raise parts.wrong("SCB", f"it does not fit {packed.name}, {packed.shape}")

    def rows(start: int, stop: int) -> npt.NDArray[Any]:
        if layout and layout.values().any():
            raise parts.wrong("weight_format", "only the format of rows, 0, is supported")
        weights: npt.NDArray[Any] = (
            packed.values()[start:stop] * scales.values()[start:stop, None] * np.float32(1 / 127)
        )
        return weights

    return parts.result(packed.shape, parts.type_for(scales), rows)


def _four_bits(parts: Parts) -> Tensor:
    packed, codes = parts.need("weight", *_BYTES), parts.need("weight.quant_map", "F32")
    state = _state(parts)
    shape = tuple(int(size) for size in state.numbers("shape"))
    dtype, block = state.text("dtype"), state.integer("blocksize")
    count = math.prod(shape)
    if dtype not in TYPES:
        raise state.wrong("dtype", f"expected {', '.join(TYPES)}")
    size = packed.data.size * packed.data.dtype.itemsize
    if not shape or min(shape) < 1 or -(-count // 2) != size:
        raise state.wrong("shape", f"{packed.name} has {size:,} bytes")
    if codes.shape != (16,):
        raise parts.wrong("weight.quant_map", "expected 16 values")
    scale_of = _scales(parts, state, -(-count // block))
    width = count // shape[0]

    def rows(start: int, stop: int) -> npt.NDArray[Any]:
        first, last = start * width, stop * width  # `first` is even: `start` is
        some = packed.values().reshape(-1).view(np.uint8)[first // 2 : -(-last // 2)]
        numbers = np.stack([some >> 4, some & 15], axis=1).reshape(-1)[: last - first]
        blocks = np.arange(first, last) // block
        values = codes.values()[numbers] * scale_of(blocks[0], blocks[-1] + 1)[blocks - blocks[0]]
        weights: npt.NDArray[Any] = values.reshape(stop - start, *shape[1:])
        return weights

    return parts.result(shape, TYPES[dtype], rows)


def _state(parts: Parts) -> Section:
    """Return the JSON object that is stored as the bytes of a tensor."""
    name = next((name for name in _STATES if name in parts.tensors), _STATES[0])
    tensor = parts.need(name, "U8")
    path = (tensor.path or Path()) / tensor.name
    if tensor.data.size > _STATE_LIMIT:
        raise parts.wrong(name, f"at most {_STATE_LIMIT:,} bytes are accepted")
    return Section(parse_object(tensor.values().tobytes(), path), path)


def _scales(parts: Parts, state: Section, count: int) -> Rows:
    """Return a function that gives the scales of some of the `count` blocks."""
    scales = parts.need("weight.absmax", "F32", "U8")
    if scales.shape != (count,):
        raise parts.wrong("weight.absmax", f"expected {count:,} scales")
    if not scales.packed:
        return lambda start, stop: scales.values()[start:stop]
    codes, outer = parts.need("weight.nested_quant_map", "F32"), parts.need("weight.nested_absmax", "F32")
    block, offset = state.integer("nested_blocksize"), np.float32(state.number("nested_offset"))
    if codes.shape != (256,):
        raise parts.wrong("weight.nested_quant_map", "expected 256 values")
    if outer.shape != (-(-count // block),):
        raise parts.wrong("weight.nested_absmax", f"expected {-(-count // block):,} scales")

    def nested(start: int, stop: int) -> npt.NDArray[Any]:
        weights: npt.NDArray[Any] = (
            codes.values()[scales.values()[start:stop]] * outer.values()[np.arange(start, stop) // block] + offset
        )
        return weights

    return nested
