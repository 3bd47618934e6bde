"""The content of an ONNX file without its weights, read from the protobuf: running a model needs no onnx package.

onnxruntime reports a truncated file or a missing operator only after loading much of it, and in its own words.
Format: onnx.proto (message ModelProto) and the protobuf wire format.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.errors import ModelFormatError, ModelNotFoundError, quoted, shortened

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})  # of operators: standard ONNX under both names, onnxruntime's
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MAX_DEPTH = 16  # of graphs within graphs


@dataclass(frozen=True)
class ValueInfo:
    """An input or output of a graph. `type` is TensorProto's number; None in `shape` is a variable dimension."""

    name: str
    type: int
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OnnxHeader:
    """`metadata` is metadata_props, with values decoded where they are JSON. `nodes` counts those of all graphs."""

    path: Path
    producer: str
    domains: frozenset[str]
    nodes: int
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    metadata: dict[str, Any]
    data_files: tuple[Path, ...]


def read_onnx(path: str | Path) -> OnnxHeader:
    """Read a file and check that it and its external data are complete, and that its operators can be run.

    Raises ModelFormatError, or ModelNotFoundError where the file or its external data is missing.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelFormatError("is a directory, not an ONNX file", path)
    if not path.is_file():
        raise ModelNotFoundError("no such file", path)
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ModelFormatError("is empty", path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Model(data, path).header()
    except ModelNotFoundError:  # it is an OSError, too
        raise
    except OSError as error:
        raise ModelFormatError(f"cannot be read: {error.strerror}", path) from None


class _WireFormatError(ValueError):
    """The file is not in the wire format, or ends early."""


class _Model:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._domains: set[str] = set()
        self._external: dict[str, int] = {}  # the least size in bytes, by location
        self._nodes = 0

    def header(self) -> OnnxHeader:
        try:
            header = self._model()
        except (_WireFormatError, UnicodeDecodeError) as error:
            raise ModelFormatError(f"is truncated or not an ONNX file: {shortened(error)}", self._path) from None
        foreign = sorted(self._domains - DOMAINS)
        if foreign:
            raise ModelFormatError(
                f"has operators of the domain {quoted(foreign[0])}; only standard ONNX and com.microsoft are supported",
                self._path,
            )
        return header

    def _model(self) -> OnnxHeader:
        producer, metadata = "", {}
        inputs: list[ValueInfo] = []
        outputs: list[ValueInfo] = []
        graphs = imports = 0
        for number, kind, start, end in self._fields(0, len(self._data)):
            if kind != _BYTES:
                continue
            if number == 2:
                producer = self._text(start, end)
            elif number == 7:
                graphs += 1
                self._graph(start, end, inputs, outputs, 0)
            elif number == 8:
                imports += 1
                self._domains.add(self._string_field(start, end, 1))
            elif number == 14:
                metadata[self._string_field(start, end, 1)] = _decoded(self._string_field(start, end, 2))
            elif number == 25:
                self._function(start, end)
        if not graphs or not imports:
            raise _WireFormatError("it has no graph" if not graphs else "it has no operator set")
        return OnnxHeader(
            self._path,
            producer,
            frozenset(self._domains),
            self._nodes,
            tuple(inputs),
            tuple(outputs),
            metadata,
            self._data_files(),
        )

    def _graph(self, start: int, end: int, inputs: list[ValueInfo], outputs: list[ValueInfo], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise _WireFormatError(f"its graphs are nested more than {_MAX_DEPTH} deep")
        for number, kind, a, b in self._fields(start, end):
            if kind != _BYTES:
                continue
            if number == 1:
                self._node(a, b, depth)
            elif number == 5:
                self._tensor(a, b)
            elif number == 11:
                inputs.append(self._value_info(a, b))
            elif number == 12:
                outputs.append(self._value_info(a, b))

    def _node(self, start: int, end: int, depth: int) -> None:
        self._nodes += 1
        for number, kind, a, b in self._fields(start, end):
            if number == 7 and kind == _BYTES:
                self._domains.add(self._text(a, b))
            elif number == 5 and kind == _BYTES:  # an attribute, which may hold graphs
                for field, form, c, d in self._fields(a, b):
                    if field in (6, 11) and form == _BYTES:
                        self._graph(c, d, [], [], depth + 1)

    def _function(self, start: int, end: int) -> None:
        for number, kind, a, b in self._fields(start, end):
            if number == 7 and kind == _BYTES:
                self._node(a, b, 0)
            elif number == 9 and kind == _BYTES:
                self._domains.add(self._string_field(a, b, 1))

    def _tensor(self, start: int, end: int) -> None:
        external = {}
        for number, kind, a, b in self._fields(start, end):
            if number == 13 and kind == _BYTES:
                external[self._string_field(a, b, 1)] = self._string_field(a, b, 2)
        if "location" in external:
            try:
                data_end = int(external.get("offset", 0)) + int(external.get("length", 0))
            except ValueError:
                raise _WireFormatError("the offset or length of its external data is not a number") from None
            location = external["location"]
            self._external[location] = max(data_end, self._external.get(location, 0))

    def _data_files(self) -> tuple[Path, ...]:
        paths = []
        for location, size in sorted(self._external.items()):
            path = self._path.parent / location
            if Path(location).name != location or location in ("", "..", "."):
                raise ModelFormatError(
                    f"its external data must be in the same folder, not at {quoted(location)}", self._path
                )
            if not path.is_file():
                raise ModelNotFoundError(f"is missing: it holds the weights of {self._path.name}", path)
            if path.stat().st_size < size:
                raise ModelFormatError(
                    f"is truncated: it has {path.stat().st_size:,} bytes, {self._path.name} needs {size:,}", path
                )
            paths.append(path)
        return tuple(paths)

    def _value_info(self, start: int, end: int) -> ValueInfo:
        name, kind, shape = self._string_field(start, end, 1), 0, []
        for tensor in self._inside(self._inside([(start, end)], 2), 1):
            kind = next((a for number, form, a, _ in self._fields(*tensor) if number == 1 and form == _VARINT), 0)
            for dimension in self._inside(self._inside([tensor], 2), 1):
                values = [a for number, form, a, _ in self._fields(*dimension) if number == 1 and form == _VARINT]
                shape.append(values[0] if values else None)
        return ValueInfo(name, kind, tuple(shape))

    def _inside(self, ranges: Any, wanted: int) -> list[tuple[int, int]]:
        return [(a, b) for r in ranges for number, kind, a, b in self._fields(*r) if (number, kind) == (wanted, _BYTES)]

    def _string_field(self, start: int, end: int, wanted: int) -> str:
        return next((self._text(a, b) for a, b in self._inside([(start, end)], wanted)), "")

    def _text(self, start: int, end: int) -> str:
        return self._data[start:end].decode()

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (field number, wire type, start, end) of each field of a message; `start` of a varint is its value."""
        while at < end:
            tag, at = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, at = self._varint(at, end)
                yield number, kind, value, at
                continue
            if kind == _BYTES:
                length, at = self._varint(at, end)
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
            else:
                raise _WireFormatError(f"there is no field at byte {at:,}")
            if not number or at + length > end:
                raise _WireFormatError(f"a field would end at byte {at + length:,} of {end:,}")
            yield number, kind, at, at + length
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 64:
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise _WireFormatError(f"a number is cut at byte {at:,}")


def _decoded(text: str) -> Any:
    """Return the value of JSON; other text stays text, and so do numbers beyond 64 bits, which GGUF cannot hold."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, int) and value.bit_length() >= 64 else value
