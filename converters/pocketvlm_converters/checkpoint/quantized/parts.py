"""The tensors of one quantized weight, checked, and what every format shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError, quoted
from pocketvlm_converters.checkpoint.config import Section
from pocketvlm_converters.checkpoint.safetensors import FLOATS, Deferred, Tensor, as_floats, rounded, rows_of_block

_ROWS = 128  # blocks begin at multiples of it, so that they begin with a byte, a word and a block of scales
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # torch's names and those of safetensors
EXPONENTS = "F8_E8M0"  # the type of scales that are powers of two; a byte is the exponent plus 127
WORD = 32  # bits of an integer that holds several weights

Rows = Callable[[int, int], npt.NDArray[Any]]


class Format(ABC):
    """A way to store quantized weights.

    - `methods`: the names of it in `quant_method`; `title`: its name in messages.
    - `parts`: what a module's quantized tensors are called; `unused`: those that say nothing about the weight, such as
      scales of activations.
    """

    methods: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    unused: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Section) -> None:
        self.settings = settings

    @abstractmethod
    def weight(self, parts: Parts) -> Tensor:
        """Return the weight of a module, deferred. Raises CheckpointError if a part is missing or does not fit."""


@dataclass(frozen=True)
class Parts:
    """The tensors that belong to the weight called `weight`, by the ends of their names.

    `float_type` is the type in which the checkpoint computes.
    """

    weight: str
    tensors: Mapping[str, Tensor]
    float_type: str

    def get(self, part: str, *types: str) -> Tensor | None:
        """Return the tensor, or None. Raises CheckpointError if it is of none of the `types`."""
        tensor = self.tensors.get(part)
        if tensor is not None and tensor.dtype not in types:
            raise self.wrong(part, f"it must be {' or '.join(types)}")
        return tensor

    def need(self, part: str, *types: str) -> Tensor:
        """Return the tensor. Raises CheckpointError if it is missing or of none of the `types`."""
        tensor = self.get(part, *types)
        if tensor is None:
            other = next(iter(self.tensors.values()))
            name = f"{self.weight.removesuffix('weight')}{part}"
            raise CheckpointError(
                f"tensor {name} is missing; {other.name} cannot be dequantized without it", other.path
            )
        return tensor

    def wrong(self, part: str, reason: str) -> CheckpointError:
        """Return an error that names the tensor, its type and its shape."""
        tensor = self.tensors[part]
        return CheckpointError(f"tensor {tensor.name} is {tensor.dtype} {quoted(tensor.shape)}; {reason}", tensor.path)

    def type_for(self, scales: Tensor) -> str:
        """Return the type that the formats' own programs give to a weight: the scales', or the model's for float32."""
        return scales.dtype if scales.dtype in ("F16", "BF16") else self.float_type

    def result(self, shape: tuple[int, ...], dtype: str, rows: Rows) -> Tensor:
        """Return the weight, rounded to `dtype`; `rows(start, stop)` computes some of its rows."""
        path = next(iter(self.tensors.values())).path
        step = rows_of_block(shape, _ROWS)

        def computed() -> Iterator[npt.NDArray[Any]]:
            for start in range(0, shape[0], step):
                block = rows(start, min(start + step, shape[0]))
                if not np.isfinite(block).all():
                    raise CheckpointError(f"tensor {self.weight} has NaN or infinite weights", path)
                yield rounded(block, dtype)

        return Tensor(self.weight, Deferred(shape, FLOATS[dtype], computed), path)


def unpack(words: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return the numbers of 2, 4 or 8 bits in each 32-bit word, lowest first: [rows, n] to [rows, n * 32 / bits]."""
    packed = np.ascontiguousarray(words, "<i4").view(np.uint8)
    numbers = np.empty((*packed.shape, 8 // bits), np.uint8)
    for at in range(8 // bits):
        np.right_shift(packed, at * bits, out=numbers[..., at])
    numbers &= 2**bits - 1
    return numbers.reshape(len(words), -1)


def take_columns(values: npt.NDArray[Any], columns: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Return `values[:, columns]`, a lot faster; the caller has checked that `columns` are there."""
    return np.take(values, columns, axis=1, mode="clip")


@dataclass(frozen=True)
class Grid:
    """How scales or zero points [rows, columns] spread over a weight: one for each block of its rows and columns."""

    block: int  # rows of the weight
    columns: npt.NDArray[np.intp] | None  # of each column of the weight, its column here; None if there is one only

    def spread(self, values: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """Return a value for each weight of the rows from `start` to `stop`, or one for each row: [rows, 1]."""
        rows = values[np.arange(start, stop) // self.block]
        return rows if self.columns is None else take_columns(rows, self.columns)

    def scales(self, tensor: Tensor, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return scales in float32, spread in the same way."""
        values = tensor.values().reshape(matrix(tensor.shape))
        return scale_floats(self.spread(values, start, stop), tensor.dtype)


def grid(parts: Parts, part: str, shape: tuple[int, int], blocks: tuple[tuple[int, int], ...]) -> Grid:
    """Return the grid of the scales `part` over a weight of `shape`: one, one for each row, or one for each block.

    `blocks` are the sizes of blocks that the configuration mentions; the last ones may be smaller.
    """
    outputs, inputs = shape
    counts = matrix(parts.tensors[part].shape)
    if counts == (1, 1):
        return Grid(max(outputs, 1), None)
    if counts == (outputs, 1):
        return Grid(1, None)
    for rows, columns in blocks:
        if rows > 0 and columns > 0 and counts == (-(-outputs // rows), -(-inputs // columns)):
            return Grid(rows, np.arange(inputs) // columns)
    raise parts.wrong(part, f"it does not fit a weight of {quoted(shape)}")


def matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of scales as rows and columns: one scale is (1, 1), one for each row is (rows, 1)."""
    return (1, 1) if int(np.prod(shape)) == 1 else (*shape, 1) if len(shape) == 1 else shape


def scale_floats(scales: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Return scales, or some of them, in float32."""
    values = as_floats(scales).astype(np.float32)
    return np.exp2(values - 127) if dtype == EXPONENTS else values
