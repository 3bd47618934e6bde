"""Weights of a safetensors file: its header checked as a stranger's, its data mapped into memory, not read before use.

The format: an 8-byte length, a JSON header, raw little-endian data without gaps. Read here, and not by its own
library, because numpy has no bfloat16: such tensors are uint16 arrays.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.config import parse_object, short
from pocketvlm_converters.checkpoint.files import open_file

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
# The format's library takes 100 MB; parsed, that is a gigabyte. Headers of the largest models are below 10 MB.
_HEADER_LIMIT = 16 << 20
_MOST_AXES = 8
_LONGEST_NAME = 500
_BLOCK = 1 << 20  # weights looked at together
BUFFERS = ("inv_freq", "position_ids")  # computed by the model, and of any type; old checkpoints hold them


@dataclass(frozen=True)
class Tensor:
    """Weights in row-major order: float32, float16, or bfloat16 as uint16. `data` is a view of `mapped`, the file.

    `label` is the name under one naming, whichever the checkpoint has; the name itself where nobody gave one.
    """

    name: str
    data: npt.NDArray[Any]
    path: Path | None = None
    mapped: mmap.mmap | None = field(default=None, repr=False, compare=False)
    given_label: str = ""

    @property
    def label(self) -> str:
        return self.given_label or self.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> str:
        """F32, F16 or BF16."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.data.dtype)

    def blocks(self, order: npt.NDArray[np.intp] | None = None) -> Iterator[npt.NDArray[Any]]:
        """The weights as [rows, width] blocks of about a million, rows in `order`; a row is the last axis.

        Raises CheckpointError where one of them is NaN or infinite, or the file has shrunk.
        """
        width = self.shape[-1] if self.shape else 1
        rows = self.data.reshape(-1, width)
        step = max(1, _BLOCK // width)
        for start in range(0, len(rows), step):
            # Reading mapped pages that are gone kills the process. This leaves a moment for it, not the whole run.
            if self.mapped is not None and self.mapped.size() < len(self.mapped):
                raise CheckpointError(f"has become shorter while tensor {self.name} was read", self.path)
            block = rows[start : start + step] if order is None else rows[order[start : start + step]]
            if not _finite(block):
                raise CheckpointError(f"tensor {self.name} has NaN or infinite weights", self.path)
            yield block


def read_tensors(path: Path) -> list[Tensor]:
    """The tensors of one file, except buffers that models compute; no weight is read yet.

    Raises CheckpointError for a header that does not describe this file, byte for byte, and for types other than
    F32, F16 and BF16.
    """
    buffer = _map(path)
    length = int.from_bytes(buffer[:8], "little")
    start = 8 + length
    if len(buffer) < 8 or start > len(buffer):
        raise CheckpointError(
            f"is truncated or not safetensors: its header would end at byte {start:,} of {len(buffer):,}", path
        )
    if length > _HEADER_LIMIT:
        raise CheckpointError(f"is not usable safetensors: its header has {length:,} bytes", path)
    header = parse_object(buffer[8:start], path, "safetensors header")
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError("holds no tensors", path)
    entries = sorted((_entry(name, entry, path) for name, entry in header.items()), key=lambda e: (e.begin, e.end))
    at, size = 0, len(buffer) - start
    if cut := next((entry for entry in entries if entry.end > size), None):
        raise CheckpointError(
            f"is truncated: tensor {cut.name} ends at byte {start + cut.end:,} of {len(buffer):,}", path
        )
    for entry in entries:
        if entry.begin != at:
            overlaps = "overlaps the one before" if entry.begin < at else "leaves a gap before it"
            raise CheckpointError(f"tensor {entry.name} {overlaps}: its header is damaged", path)
        at = entry.end
    if at != size:
        raise CheckpointError(f"has {size - at:,} bytes after its last tensor, {entries[-1].name}", path)
    return [entry.tensor(buffer, start, path) for entry in entries if not entry.name.endswith(BUFFERS)]


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the end of the header
    end: int

    def tensor(self, buffer: mmap.mmap, start: int, path: Path) -> Tensor:
        dtype, count = _DTYPES.get(self.dtype), math.prod(self.shape)
        if dtype is None:
            reason = "F32, F16 and BF16 are read; of a quantized checkpoint, convert the original"
            raise CheckpointError(f"tensor {self.name} is {short(self.dtype)[1:-1]}; {reason}", path)
        size = self.end - self.begin
        if count * dtype.itemsize != size:
            raise CheckpointError(
                f"tensor {self.name} has {size:,} bytes, not those of {self.dtype} {short(self.shape)}", path
            )
        data = np.frombuffer(buffer, dtype, count, start + self.begin).reshape(self.shape)
        return Tensor(self.name, data, path, buffer)


def _entry(name: str, entry: Any, path: Path) -> _Entry:
    if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise CheckpointError(f"has a tensor with the unusable name {short(name)}", path)

    def sizes(key: str, most: int) -> list[int]:
        found = entry.get(key)
        if not isinstance(found, list) or len(found) > most or not all(type(n) is int and n >= 0 for n in found):
            raise CheckpointError(f"tensor {name}: {key} is {short(found)} in the safetensors header", path)
        return found

    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise CheckpointError(f"tensor {name}: {short(entry)} in the safetensors header, with no dtype", path)
    shape, offsets = tuple(sizes("shape", _MOST_AXES)), sizes("data_offsets", 2)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"tensor {name}: data_offsets is {short(offsets)} in the safetensors header", path)
    return _Entry(name, entry["dtype"], shape, *offsets)


def _finite(block: npt.NDArray[Any]) -> bool:
    if block.dtype == _DTYPES["BF16"]:
        return bool(((block & 0x7F80) != 0x7F80).all())  # an exponent of ones is NaN or infinity
    return bool(np.isfinite(block).all())


def _map(path: Path) -> mmap.mmap:
    with open_file(path) as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot be read: {error}", path) from None
