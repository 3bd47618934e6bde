"""GGUF files, written tensor by tensor in blocks: neither a file nor a whole tensor is ever in memory."""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from pocketvlm.errors import CheckpointError, OutputError
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.weights import Part, Value, Weight

FloatType = Literal["f32", "f16", "bf16"]
ProjectorType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q4_0", "mixed"]
PROJECTOR_TYPES: tuple[ProjectorType, ...] = get_args(ProjectorType)
_FILE_TYPES = {Type.F32: 0, Type.F16: 1, Type.Q4_0: 2, Type.Q8_0: 7, Type.Q5_1: 9, Type.BF16: 32}  # llama_ftype
_PROJECTOR = ("mm.", "v.deepstack.")  # where libmtmd's names of its matrices begin
_LAYER = re.compile(r"v\.blk\.(\d+)\.")
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


def write_language(
    part: Part, path: Path, kind: FloatType | None, progress: Progress = silent, *, meta: bool = False
) -> None:
    """Write the language model; `kind` None keeps every matrix in the precision that the checkpoint has.

    Vectors are float32 always: libllama computes norms and biases in it. A `meta` file has the size of the true one,
    and its header, but no weights: a hole, which takes no room on the disk.
    """
    wanted = Type[kind.upper()] if kind else None

    def choose(weight: Weight) -> Type:
        if weight.exact or not weight.is_matrix:
            return Type.F32
        return wanted if wanted is not None else Type[weight.tensor.dtype]  # Type.F32 is 0

    main = choose(max(part.weights, key=lambda weight: weight.tensor.data.size))
    _write(
        part,
        path,
        choose,
        {"general.type": "model", "general.file_type": _FILE_TYPES[main]},
        "language model",
        progress,
        meta,
    )


def write_projector(
    part: Part, path: Path, kind: ProjectorType, progress: Progress = silent, *, meta: bool = False
) -> list[str]:
    """Write the mmproj file, likewise. Returns one line about what could not be written as `kind`, if anything."""
    fallen: list[Weight] = []
    last = max((number for weight in part.weights if (number := _layer(weight)) is not None), default=0)

    def choose(weight: Weight) -> Type:
        wanted = _projector_type(weight, kind, last)
        if weight.width % gguf.GGML_QUANT_SIZES[wanted][0]:
            fallen.append(weight)
            return Type.F16
        return wanted

    main = _FILE_TYPES[Type.Q5_1 if kind == "mixed" else Type[kind.upper()]]
    extra: dict[str, Value] = {"general.type": "mmproj", "general.file_type": main}
    _write(part, path, choose, extra, f"mmproj {kind}", progress, meta)
    if not fallen:
        return []
    widths = ", ".join(str(width) for width in sorted({weight.width for weight in fallen}))
    return [f"{len(fallen)} mmproj tensors are f16, not {kind}: their rows of {widths} are no multiple of 32"]


def write_meta(part: Part, path: Path, types: Mapping[str, str]) -> None:
    """A hollow language model whose tensors have the `types` of these names, as in Q4_K."""
    _write(part, path, lambda weight: Type[types[weight.name]], {"general.type": "model"}, "sketch", silent, True)


def _projector_type(weight: Weight, kind: ProjectorType, last: int) -> Type:
    """By what errors cost on a trained model: most in the projector, then in the first, the last and each down matrix.

    `last` is the number of the last layer.
    """
    if weight.exact or not weight.is_matrix:
        return Type.F32
    if kind in get_args(FloatType):
        return Type[kind.upper()]
    if weight.name.startswith(_PROJECTOR):
        return Type.F16
    if kind != "mixed":
        return Type[kind.upper()]
    return Type.Q8_0 if _layer(weight) in (0, last) or "ffn_down" in weight.name else Type.Q5_1


def _layer(weight: Weight) -> int | None:
    found = _LAYER.match(weight.name)
    return int(found[1]) if found else None


def _write(
    part: Part,
    path: Path,
    choose: Callable[[Weight], Type],
    extra: Mapping[str, Value],
    step: str,
    progress: Progress,
    meta: bool,
) -> None:
    writer = gguf.GGUFWriter(path, part.architecture)
    count = sum(prod(weight.tensor.shape) for weight in part.weights)
    general: dict[str, Value] = {
        "general.size_label": gguf.size_label(count, count, 0, 0),
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    for key, value in {**general, **extra, **part.metadata}.items():
        add_value(writer, key, value)
    plan = [(weight, choose(weight)) for weight in part.weights]
    sizes = [_size(weight.tensor.shape, kind) for weight, kind in plan]
    for (weight, kind), size in zip(plan, sizes, strict=True):
        writer.add_tensor_info(weight.name, weight.tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    done, total = 0, sum(sizes)
    progress(step, 0, total)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (out,) = writer.fout
        writer.write_padding(out, out.tell())
        if meta:
            out.truncate(out.tell() + sum(writer.ggml_pad(size, writer.data_alignment) for size in sizes))
            plan, sizes = [], []
        # Not write_tensor_data: it wants a whole tensor, and a full disk there is an OSError without errno.
        for (weight, kind), size in zip(plan, sizes, strict=True):
            for block in weight.tensor.blocks(weight.order):
                encoded = np.ascontiguousarray(_encode(block, weight, kind))
                out.write(encoded.data)
                done += encoded.nbytes
                progress(step, done, total)
            writer.write_padding(out, size)
        writer.flush()
    except BaseException:  # Ctrl-C too: the file must not stay open
        with contextlib.suppress(OSError):  # closing writes what is buffered: the first error is the one to tell
            writer.close()
        raise
    writer.close()


def add_value(writer: Any, key: str, value: Value) -> None:
    """One key of a file that `writer`, a gguf.GGUFWriter, makes, in the type that `Part` says."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def _size(shape: tuple[int, ...], kind: Type) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(prod(shape) // block * size)


def _encode(block: npt.NDArray[Any], weight: Weight, kind: Type) -> npt.NDArray[Any]:
    """[rows, width] as stored by the checkpoint -> the same rows as stored by ggml."""
    if weight.tensor.dtype == kind.name:
        return block
    values = (block.astype(np.uint32) << 16).view(np.float32) if weight.tensor.dtype == "BF16" else block
    if kind is Type.F16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise CheckpointError(
                f"tensor {weight.tensor.name} has weights beyond float16: use bf16 or f32", weight.tensor.path
            )
        return halves
    encoded: npt.NDArray[Any] = gguf.quants.quantize(values.astype(np.float32, copy=False), kind)
    return encoded


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as a GGUF header lists it. `shape` is in numpy's order, `kind` as in Q4_K, `offset` from byte 0 on."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int


def read_tensors(path: Path) -> list[TensorEntry]:
    """The tensors of a GGUF file, with a check that the file holds all of their data.

    gguf.GGUFReader makes an array of every token: seconds, and hundreds of MB. Raises OutputError.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _read_tensors(data)
        except (struct.error, ValueError, OverflowError) as error:
            raise OutputError(f"is incomplete: {error}", path) from None


_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TYPES = frozenset(map(int, gguf.GGML_QUANT_SIZES))  # libllama may be ahead of the gguf package


def _read_tensors(data: mmap.mmap) -> list[TensorEntry]:
    at = 0

    def take(format: str) -> Any:
        nonlocal at
        values = struct.unpack_from("<" + format, data, at)
        at += struct.calcsize("<" + format)
        return values if len(values) > 1 else values[0]

    def text() -> str:
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length : at].decode()

    def scalar(kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"a value of its header has the unknown type {kind}")
        return _SCALARS[kind]

    def value(kind: int) -> Any:
        nonlocal at
        if kind == _STRING:
            return text()
        if kind != _ARRAY:
            return take(scalar(kind))
        item, count = take("IQ")
        if item != _STRING:
            at += count * struct.calcsize("<" + scalar(item))
        else:
            for _ in range(count):
                at += 8 + struct.unpack_from("<Q", data, at)[0]
        return None

    if data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    _, _, tensor_count, value_count = take("IIQQ")
    alignment = 32
    for _ in range(value_count):
        key, kind = text(), take("I")
        found = value(kind)
        if key == "general.alignment":
            if not isinstance(found, int) or found < 1:
                raise ValueError(f"its data cannot be aligned to {found!r}")
            alignment = found
    found, ends = [], [0]
    for _ in range(tensor_count):
        name, dimensions = text(), take("I")
        shape = tuple(take("Q") for _ in range(dimensions))[::-1]
        number, offset = take("IQ")
        if number in _TYPES:
            ends.append(offset + _size(shape, Type(number)))
        found.append((name, shape, Type(number).name if number in _TYPES else f"type {number}", offset))
    begin = -(-at // alignment) * alignment
    if begin + max(ends) > len(data):
        raise ValueError(f"its last tensor ends at byte {begin + max(ends):,} of {len(data):,}")
    return [TensorEntry(name, shape, kind, begin + offset) for name, shape, kind, offset in found]
