"""Read safetensors files: the header is untrusted and checked, the weights are memory-mapped.

The format: an 8-byte length, a JSON header, raw little-endian data without gaps. The safetensors package is not used
because numpy has no bfloat16: such tensors are uint16 arrays here.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError, quoted, shortened
from pocketvlm_converters.checkpoint.config import parse_object
from pocketvlm_converters.checkpoint.files import open_file

FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
# Types of quantized weights and what belongs to them. Floats of 8 bits are bytes here.
_PACKED: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
}
# Bytes. The safetensors package accepts 100 MB, which takes a gigabyte when parsed; the largest models' headers are
# below 10 MB.
_HEADER_LIMIT = 16 << 20
_MAX_AXES = 8
_MAX_NAME_LENGTH = 500  # characters
BLOCK = 1 << 20  # weights in a block of `Tensor.blocks`
BUFFERS = ("inv_freq", "position_ids")  # name endings of buffers in old checkpoints, of any type; models compute them


@dataclass(frozen=True)
class Deferred:
    """An array of `shape` that is computed each time its values are needed, so that it is not kept in memory.

    `parts` computes it: consecutive pieces along the first axis, at best of about a million numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: Callable[[], Iterator[npt.NDArray[Any]]]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def compute(self) -> npt.NDArray[Any]:
        """Return the whole array."""
        values, start = np.empty(self.shape, self.dtype), 0
        for part in self.parts():
            if part.shape == self.shape:
                return part
            values[start : start + len(part)] = part
            start += len(part)
        return values

    def view(self, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Deferred:
        """Return `change(array)`, deferred as well. `change` gets zeros once, to learn the new shape."""
        shape = change(np.broadcast_to(np.zeros((), self.dtype), self.shape)).shape
        return Deferred(shape, self.dtype, lambda: iter([change(self.compute())]))


@dataclass(frozen=True)
class Tensor:
    """Weights in row-major order: float32, float16, or bfloat16 as uint16.

    `data` is a view of `mapped`, the file, or deferred where weights are computed from several tensors. `label` is the
    name in the family's first naming scheme, whichever scheme the checkpoint uses; `name` by default. `packed` is the
    type in the file of numbers that are not weights by themselves, such as I32 or F8_E4M3.
    """

    name: str
    data: npt.NDArray[Any] | Deferred
    path: Path | None = None
    mapped: mmap.mmap | None = field(default=None, repr=False, compare=False)
    given_label: str = ""
    packed: str = ""

    @property
    def label(self) -> str:
        return self.given_label or self.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> str:
        """F32, F16 or BF16, or the `packed` type."""
        return self.packed or next(name for name, dtype in FLOATS.items() if dtype == self.data.dtype)

    def values(self) -> npt.NDArray[Any]:
        """Return all numbers as they are stored. Raises CheckpointError if the file has shrunk."""
        self._check_size()
        return self.data.compute() if isinstance(self.data, Deferred) else self.data

    def view(self, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Tensor:
        """Return the tensor with `change(values)`, such as a slice. Deferred weights are not computed yet."""
        data = self.data.view(change) if isinstance(self.data, Deferred) else change(self.data)
        return replace(self, data=data)

    def __getitem__(self, index: Any) -> Tensor:
        """Return a slice or a row, as numpy does, without reading it."""
        return self.view(lambda data: data[index])

    def blocks(self, order: npt.NDArray[np.intp] | None = None) -> Iterator[npt.NDArray[Any]]:
        """Yield the weights as [rows, width] blocks of about a million, rows in `order`; a row is the last axis.

        Raises CheckpointError if a weight is NaN or infinite, or the file has shrunk.
        """
        width = self.shape[-1] if self.shape else 1
        step = max(1, BLOCK // width)
        in_parts = order is None and isinstance(self.data, Deferred)
        for part in self.parts() if in_parts else (self.values(),):
            rows = part.reshape(-1, width)
            for start in range(0, len(rows), step):
                self._check_size()
                block = rows[start : start + step] if order is None else rows[order[start : start + step]]
                if not _finite(block):
                    raise CheckpointError(f"tensor {self.name} has NaN or infinite weights", self.path)
                yield block

    def parts(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the numbers in consecutive pieces along the first axis, in blocks of about a million."""
        if isinstance(self.data, Deferred):
            yield from self.data.parts()
            return
        step = rows_of_block(self.shape)
        for start in range(0, self.shape[0], step):
            self._check_size()
            yield self.data[start : start + step]

    def _check_size(self) -> None:
        # Reading pages beyond the end of a file that has shrunk kills the process with SIGBUS. Checking before each
        # block shortens the time in which that can happen.
        if self.mapped is not None and self.mapped.size() < len(self.mapped):
            raise CheckpointError(f"became shorter while tensor {self.name} was read", self.path)


def rows_of_block(shape: tuple[int, ...], multiple: int = 1) -> int:
    """Return how many rows along the first axis make a block: a `multiple` of rows, at least once."""
    return max(1, BLOCK // max(1, math.prod(shape[1:])) // multiple) * multiple


def as_floats(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return weights as they are stored as float32 or float16: bfloat16 becomes float32."""
    return (block.astype(np.uint32) << 16).view(np.float32) if block.dtype == FLOATS["BF16"] else block


def rounded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """Round finite float32 values to F32, F16 or BF16, halves to even. What is too large becomes infinite."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(FLOATS[dtype], copy=False)


def read_safetensors(path: Path) -> list[Tensor]:
    """Return the tensors of one file, except buffers that models compute. Weights are not read yet.

    Raises CheckpointError if the header does not describe the file to the byte, and for types that are neither floats
    nor those of quantized weights.
    """
    buffer = _map(path)
    length = int.from_bytes(buffer[:8], "little")
    start = 8 + length
    if len(buffer) < 8 or start > len(buffer):
        raise CheckpointError(
            f"is truncated or not safetensors: its header would end at byte {start:,} of {len(buffer):,}", path
        )
    if length > _HEADER_LIMIT:
        raise CheckpointError(
            f"is not usable safetensors: its header has {length:,} bytes, at most {_HEADER_LIMIT:,} are accepted", path
        )
    header = parse_object(buffer[8:start], path, "safetensors header")
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError("contains no tensors", path)
    entries = sorted((_entry(name, entry, path) for name, entry in header.items()), key=lambda e: (e.begin, e.end))
    end, size = 0, len(buffer) - start
    if truncated := next((entry for entry in entries if entry.end > size), None):
        raise CheckpointError(
            f"is truncated: tensor {truncated.name} ends at byte {start + truncated.end:,} of {len(buffer):,}", path
        )
    for entry in entries:
        if entry.begin != end:
            fault = "overlaps the one before it" if entry.begin < end else "leaves a gap before it"
            raise CheckpointError(f"has a damaged header: tensor {entry.name} {fault}", path)
        end = entry.end
    if end != size:
        raise CheckpointError(f"has {size - end:,} bytes after its last tensor, {entries[-1].name}", path)
    return [entry.tensor(buffer, start, path) for entry in entries if not entry.name.endswith(BUFFERS)]


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes after the end of the header, as `end`
    end: int

    def tensor(self, buffer: mmap.mmap, start: int, path: Path) -> Tensor:
        dtype, count = {**FLOATS, **_PACKED}.get(self.dtype), math.prod(self.shape)
        if dtype is None:
            raise unreadable(self.name, shortened(self.dtype), path)
        size = self.end - self.begin
        if count * dtype.itemsize != size:
            raise CheckpointError(
                f"tensor {self.name} has {size:,} bytes; expected {count * dtype.itemsize:,} for {self.dtype} "
                f"{quoted(self.shape)}",
                path,
            )
        data = np.frombuffer(buffer, dtype, count, start + self.begin).reshape(self.shape)
        return Tensor(self.name, data, path, buffer, packed=self.dtype if self.dtype in _PACKED else "")


def unreadable(name: str, dtype: str, path: Path | None) -> CheckpointError:
    """Return the error for a tensor whose type is not that of weights."""
    reason = "only F32, F16 and BF16 are supported; if the checkpoint is quantized, convert the original"
    if dtype == "F64":
        reason = "only F32, F16 and BF16 are supported; save the checkpoint in float32 first"
    return CheckpointError(f"tensor {name} is {dtype}; {reason}", path)


def _entry(name: str, entry: Any, path: Path) -> _Entry:
    if not name.isprintable() or not 0 < len(name) <= _MAX_NAME_LENGTH:
        raise CheckpointError(f"has a tensor with the unusable name {quoted(name)}", path)
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise CheckpointError(f"tensor {name}: {quoted(entry)} in the safetensors header, without a dtype", path)

    def sizes(key: str, max_length: int) -> list[int]:
        values = entry.get(key)
        if (
            not isinstance(values, list)
            or len(values) > max_length
            or not all(type(n) is int and n >= 0 for n in values)
        ):
            raise CheckpointError(f"tensor {name}: {key} is {quoted(values)} in the safetensors header", path)
        return values

    shape, offsets = tuple(sizes("shape", _MAX_AXES)), sizes("data_offsets", 2)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"tensor {name}: data_offsets is {quoted(offsets)} in the safetensors header", path)
    return _Entry(name, entry["dtype"], shape, *offsets)


def _finite(block: npt.NDArray[Any]) -> bool:
    if block.dtype == FLOATS["BF16"]:
        return bool(((block & 0x7F80) != 0x7F80).all())  # NaN and infinity have all bits of the exponent set
    return bool(np.isfinite(block).all())


def _map(path: Path) -> mmap.mmap:
    with open_file(path) as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot be read: {error}", path) from None
