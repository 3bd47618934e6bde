"""The header of a GGUF file: its metadata and the list of its tensors, without reading a tensor.

The reader of the gguf package makes an object of every vocabulary entry, which takes two seconds for 49,000 entries.
This one skips large arrays until they are needed, and reads the file in blocks. Format: ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import ModelFormatError, ModelNotFoundError, quoted, shortened

MAGIC = b"GGUF"
PROJECTOR_TYPES = ("clip.projector_type", "clip.vision.projector_type")  # the second counts where the first is empty
UINT32, FLOAT32, BOOL, STRING = 4, 6, 7, 8  # types of values: gguf_type of gguf.h
_F32, _NO_WEIGHTS = 0, range(24, 29)  # GGML_TYPE_F32; GGML_TYPE_I8 to GGML_TYPE_I64 and GGML_TYPE_F64
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", UINT32: "I", 5: "i", FLOAT32: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_ARRAY = 9
_BLOCK = 1 << 20  # bytes that are read at once
_LENGTH = struct.Struct("<Q")
_MAX_COUNT = 1 << 26  # entries of an array, bytes of a string: a file with more is broken, not large
_EAGER_COUNT = 512  # entries: means, deviations, lists of layers and sizes are read at once
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class TensorInfo:
    """`shape` is in ggml's order, fastest dimension first. `offset` is in bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def type_name(self) -> str:
        from gguf.constants import GGMLQuantizationType

        return str(GGMLQuantizationType(self.type).name)

    @property
    def n_bytes(self) -> int:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.type)]
        elements = 1
        for extent in self.shape:
            elements *= extent
        return int(elements // block * size)


@dataclass(frozen=True)
class LazyArray:
    """An array of the metadata that was skipped: `count` entries at byte `offset` of the file."""

    type: int
    count: int
    offset: int


@dataclass(frozen=True)
class GGUFHeader:
    """`start` is the byte where the data of the tensors begins. `types` are those of the values of the metadata.

    A model in several files has the `tensors` of all of them; `pieces` are the headers of the files.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    start: int
    pieces: tuple[GGUFHeader, ...] = ()
    types: Mapping[str, int] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(piece.path for piece in self.pieces) or (self.path,)

    def place(self, tensor: TensorInfo) -> tuple[Path, int]:
        """Return the file of a tensor, and the byte where its data begins."""
        piece = next((piece for piece in self.pieces if tensor in piece.tensors), self)
        return piece.path, piece.start + tensor.offset

    def check_type(self, tensor: TensorInfo, *, exact: bool = False) -> None:
        """Raise ModelFormatError unless a tensor has a type of weights: F32 if it is `exact`, or a vector.

        The graphs of libllama and libmtmd have vectors only where ggml's functions take no other type.
        """
        exact |= len([extent for extent in tensor.shape if extent != 1]) < 2
        if tensor.type in _NO_WEIGHTS or (exact and tensor.type != _F32):
            expected = "F32" if exact else "a type of weights"
            raise ModelFormatError(
                f"tensor {quoted(tensor.name)} has the type {tensor.type_name}, expected {expected}", self.path
            )

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def is_projector(self) -> bool:
        return self.architecture == "clip" or self.metadata.get("general.type") == "mmproj"

    def array(self, key: str) -> list[Any]:
        """Return the entries of an array; an empty list where there is none."""
        lazy = self.metadata.get(key)
        if not isinstance(lazy, LazyArray):
            return lazy if isinstance(lazy, list) else []
        with self.path.open("rb") as file:
            return _Reader(file, self.path, lazy.offset).entries(lazy.type, lazy.count)

    def texts(self, key: str) -> list[bytes] | None:
        """Read an array of texts without decoding them; None where there is none."""
        lazy = self.metadata.get(key)
        if not isinstance(lazy, LazyArray) or lazy.type != STRING:
            return None
        with self.path.open("rb") as file:
            return _Reader(file, self.path, lazy.offset).texts(lazy.count)

    def vector(self, name: str) -> npt.NDArray[np.float32] | None:
        """Read a float32 tensor of one dimension; None where there is no such tensor."""
        tensor = next((tensor for tensor in self.tensors if tensor.name == name), None)
        if tensor is None or tensor.type != _F32 or len(tensor.shape) != 1:
            return None
        path, offset = self.place(tensor)
        return np.fromfile(path, "<f4", tensor.shape[0], offset=offset).astype(np.float32)


def read_header(path: str | Path, *, allow_unknown_types: bool = False) -> GGUFHeader:
    """Read and check a header.

    With `allow_unknown_types`, tensors of types that the gguf package does not know are accepted without a size check.
    Raises ModelFormatError for anything but a complete GGUF file of version 2 or 3, ModelNotFoundError for no file.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelFormatError("is a directory, not a GGUF file", path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _Reader(file, path).header(size, allow_unknown_types)
    except FileNotFoundError:
        raise ModelNotFoundError("no such file", path) from None
    except OSError as error:
        raise ModelFormatError(f"cannot be read: {error.strerror}", path) from None


def projector_type(metadata: Mapping[str, Any]) -> str | None:
    """Return libmtmd's name for a vision encoder from the metadata of its GGUF or ONNX file; None where it has none."""
    name = next((value for key in PROJECTOR_TYPES if (value := metadata.get(key, "")) != ""), None)
    return name if isinstance(name, str) else None


class _Reader:
    """Reads from byte `offset` on. `_data` is the block in memory, `_at` the place in it; it may lie behind its end."""

    def __init__(self, file: BinaryIO, path: Path, offset: int = 0) -> None:
        file.seek(offset)
        self._file, self._path = file, path
        self._data, self._at, self._end = b"", 0, offset

    def header(self, size: int, allow_unknown_types: bool) -> GGUFHeader:
        if size == 0:
            raise ModelFormatError("is empty", self._path)
        if size < len(MAGIC) or self._read(4) != MAGIC:
            raise ModelFormatError("is not a GGUF file", self._path)
        version, n_tensors, n_metadata = self._unpack("<IQQ")
        if version not in (2, 3):
            raise ModelFormatError(f"has GGUF version {version}; 2 and 3 are supported", self._path)
        if max(n_tensors, n_metadata) > _MAX_COUNT:
            raise ModelFormatError("has a broken header", self._path)
        metadata: dict[str, Any] = {}
        types: dict[str, int] = {}
        for _ in range(n_metadata):
            key = self._string()
            (types[key],) = self._unpack("<I")
            metadata[key] = self._value(types[key])
        tensors = tuple(self._tensor() for _ in range(n_tensors))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelFormatError(f"has a broken header: general.alignment is {quoted(alignment)}", self._path)
        start = (self._tell() + alignment - 1) // alignment * alignment
        self._check_length(tensors, start, size, allow_unknown_types)
        return GGUFHeader(self._path, version, metadata, tensors, start, types=types)

    def _check_length(self, tensors: tuple[TensorInfo, ...], start: int, size: int, allow_unknown_types: bool) -> None:
        for tensor in tensors:
            try:
                end = start + tensor.offset + tensor.n_bytes
            except (KeyError, ValueError):
                if allow_unknown_types:
                    continue
                raise ModelFormatError(
                    f"tensor {shortened(tensor.name)} has the unknown type {tensor.type}", self._path
                ) from None
            if end > size:
                raise ModelFormatError(
                    f"is truncated: it has {size:,} bytes, tensor {shortened(tensor.name)} ends at {end:,}", self._path
                )

    def entries(self, kind: int, count: int) -> list[Any]:
        if kind in _SCALARS:
            return list(self._unpack(f"<{count}{_SCALARS[kind]}"))
        return [self._value(kind) for _ in range(count)]

    def texts(self, count: int, *, keep: bool = True) -> list[bytes]:
        """Pass `count` texts, and return them if they are to be kept.

        Vocabularies have 300,000, and nearly all end within the block: this does not call a function for each.
        """
        texts: list[bytes] = []
        data, at, unpack = self._data, self._at, _LENGTH.unpack_from
        size = len(data)
        for _ in range(count):
            if at + 8 > size:
                self._at = at
                self._fill(8)
                data, at, size = self._data, 0, len(self._data)
            (length,) = unpack(data, at)
            at += 8
            if length > _MAX_COUNT:
                raise ModelFormatError("has a broken header", self._path)
            if keep:
                if at + length > size:
                    self._at = at
                    self._fill(length)
                    data, at, size = self._data, 0, len(self._data)
                texts.append(data[at : at + length])
            at += length
        self._at = at
        return texts

    def _tensor(self) -> TensorInfo:
        name = self._string()
        (dimensions,) = self._unpack("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise ModelFormatError("has a broken header", self._path)
        shape = self._unpack(f"<{dimensions}Q")
        kind, offset = self._unpack("<IQ")
        return TensorInfo(name, shape or (1,), kind, offset)  # a scalar may have no dimensions

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        code = _SCALARS.get(kind)
        if code is None:
            raise ModelFormatError(f"has a broken header: value type {kind}", self._path)
        return self._unpack("<" + code)[0]

    def _array(self) -> LazyArray | list[Any]:
        kind, count = self._unpack("<IQ")
        if count > _MAX_COUNT or kind == _ARRAY:  # ggml does not read arrays of arrays either
            raise ModelFormatError("has a broken header", self._path)
        if kind in _SCALARS and count <= _EAGER_COUNT:
            return self.entries(kind, count)
        lazy = LazyArray(kind, count, self._tell())
        if kind in _SCALARS:
            self._at += struct.calcsize("<" + _SCALARS[kind]) * count
        elif kind == STRING:
            self.texts(count, keep=False)
        else:
            for _ in range(count):
                self._value(kind)
        return lazy

    def _string(self) -> str:
        return self._read(self._length()).decode("utf-8", "replace")

    def _length(self) -> int:
        (length,) = self._unpack("<Q")
        if length > _MAX_COUNT:
            raise ModelFormatError("has a broken header", self._path)
        return int(length)

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._read(struct.calcsize(layout)))

    def _read(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            self._fill(count)
        data = self._data[self._at : self._at + count]
        self._at += count
        return data

    def _fill(self, count: int) -> None:
        """Put the place at the beginning of a new block, of at least `count` bytes."""
        self._file.seek(self._tell())
        self._data, self._at = self._file.read(max(count, _BLOCK)), 0
        self._end = self._file.tell()
        if len(self._data) < count:
            raise ModelFormatError("is truncated: its header ends early", self._path)

    def _tell(self) -> int:
        """Return the byte of the file that is read next."""
        return self._end - len(self._data) + self._at
