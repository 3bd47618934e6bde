"""Write GGUF files tensor by tensor in blocks, so that neither a file nor a whole tensor is ever in memory.

A meta file, written with `meta=True`, has the header and the size of the real file, but a hole instead of the weights:
it takes no room on the disk. (torch calls tensors without data "meta", too.)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from pocketvlm.errors import CheckpointError, ModelFormatError, OutputError
from pocketvlm.files.gguf_header import read_header
from pocketvlm.files.gguf_values import add_value
from pocketvlm_converters.checkpoint.safetensors import as_floats
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.weights import Part, Value, Weight

FloatType = Literal["f32", "f16", "bf16"]
ProjectorType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q4_0", "mixed"]
PROJECTOR_TYPES: tuple[ProjectorType, ...] = get_args(ProjectorType)
_FILE_TYPES = {Type.F32: 0, Type.F16: 1, Type.Q4_0: 2, Type.Q8_0: 7, Type.Q5_1: 9, Type.BF16: 32}  # llama_ftype
_PROJECTOR_PREFIXES = ("mm.", "v.deepstack.")  # of libmtmd's names for the projector's matrices
_LAYER = re.compile(r"v\.blk\.(\d+)\.")
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION of ggml.h
_KNOWN_TYPES = frozenset(map(int, gguf.GGML_QUANT_SIZES))


def write_language(
    part: Part, path: Path, kind: FloatType | None, progress: Progress = silent, *, meta: bool = False
) -> None:
    """Write the language model; `kind` None keeps every matrix in the checkpoint's precision.

    Vectors are always float32: libllama computes norms and biases in it. With `meta`, write a meta file.
    """

    def type_of(weight: Weight) -> Type:
        if weight.exact or not weight.is_matrix:
            return Type.F32
        return Type[kind.upper() if kind else weight.tensor.dtype]

    main = type_of(max(part.weights, key=lambda weight: weight.tensor.data.size))
    metadata: dict[str, Value] = {"general.type": "model", "general.file_type": _FILE_TYPES[main]}
    _write(part, path, type_of, metadata, "language model", progress, meta)


def write_projector(
    part: Part, path: Path, kind: ProjectorType, progress: Progress = silent, *, meta: bool = False
) -> list[str]:
    """Write the mmproj file, with `meta` a meta file.

    Returns a note about the tensors that cannot be written as `kind`, if there are any.
    """
    fallbacks: list[Weight] = []
    last_layer = max((number for weight in part.weights if (number := _layer(weight)) is not None), default=0)

    def type_of(weight: Weight) -> Type:
        wanted = _projector_type(weight, kind, last_layer)
        if weight.width % gguf.GGML_QUANT_SIZES[wanted][0]:
            fallbacks.append(weight)
            return Type.F16
        return wanted

    main = Type.Q5_1 if kind == "mixed" else Type[kind.upper()]
    metadata: dict[str, Value] = {"general.type": "mmproj", "general.file_type": _FILE_TYPES[main]}
    _write(part, path, type_of, metadata, f"mmproj {kind}", progress, meta)
    if not fallbacks:
        return []
    widths = ", ".join(str(width) for width in sorted({weight.width for weight in fallbacks}))
    return [
        f"{len(fallbacks)} mmproj tensors are f16, not {kind}: their row lengths ({widths}) are not multiples of 32"
    ]


def write_meta_language(part: Part, path: Path, types: Mapping[str, str]) -> None:
    """Write a meta file of a quantized language model; `types` maps each tensor's name to its type, as in Q4_K."""
    _write(part, path, lambda weight: Type[types[weight.name]], {"general.type": "model"}, "", silent, True)


def _projector_type(weight: Weight, kind: ProjectorType, last_layer: int) -> Type:
    """Return the type of a tensor. "mixed" gives more bits where rounding errors cost most.

    Measured on a trained model: most in the projector, then in the first layer, the last layer and all down matrices.
    """
    if weight.exact or not weight.is_matrix:
        return Type.F32
    if kind in get_args(FloatType):
        return Type[kind.upper()]
    if weight.name.startswith(_PROJECTOR_PREFIXES):
        return Type.F16
    if kind != "mixed":
        return Type[kind.upper()]
    return Type.Q8_0 if _layer(weight) in (0, last_layer) or "ffn_down" in weight.name else Type.Q5_1


def _layer(weight: Weight) -> int | None:
    match = _LAYER.match(weight.name)
    return int(match[1]) if match else None


def _write(
    part: Part,
    path: Path,
    type_of: Callable[[Weight], Type],
    metadata: Mapping[str, Value],
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
    for key, value in {**general, **metadata, **part.metadata}.items():
        add_value(writer, key, value)
    typed = [(weight, type_of(weight)) for weight in part.weights]
    sizes = [_size(weight.tensor.shape, kind) for weight, kind in typed]
    for (weight, kind), size in zip(typed, sizes, strict=True):
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
            typed, sizes = [], []
        # Not write_tensor_data: it needs a whole tensor, and raises an OSError without errno when the disk is full.
        for (weight, kind), size in zip(typed, sizes, strict=True):
            for block in weight.blocks():
                encoded = np.ascontiguousarray(_encode(block, weight, kind))
                out.write(encoded.data)
                done += encoded.nbytes
                progress(step, done, total)
            writer.write_padding(out, size)
        writer.flush()
    except BaseException:  # also Ctrl-C: close the file
        with contextlib.suppress(OSError):  # closing flushes the buffer and may fail, too; the first error counts
            writer.close()
        raise
    writer.close()


def _size(shape: tuple[int, ...], kind: Type) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(prod(shape) // block * size)


def _encode(block: npt.NDArray[Any], weight: Weight, kind: Type) -> npt.NDArray[Any]:
    """Convert [rows, width] weights as the checkpoint stores them to the bytes or floats that ggml stores."""
    if weight.tensor.dtype == kind.name:
        return block
    values = as_floats(block)
    if kind is Type.F16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise CheckpointError(
                f"tensor {weight.tensor.name} has weights beyond float16's range; use bf16 or f32", weight.tensor.path
            )
        return halves
    encoded: npt.NDArray[Any] = gguf.quants.quantize(values.astype(np.float32, copy=False), kind)
    return encoded


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a GGUF header. `shape` is in numpy's order, `kind` as in Q4_K, `offset` in bytes from byte 0."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int


def read_tensors(path: Path) -> list[TensorEntry]:
    """Return the tensors of a GGUF file. Raises OutputError unless the file contains all of their data."""
    try:
        header = read_header(path, allow_unknown_types=True)  # libllama may write types that the gguf package lacks
    except ModelFormatError as error:
        raise OutputError(f"is not a complete GGUF file: it {error.message}", path) from None
    return [
        TensorEntry(
            tensor.name,
            tensor.shape[::-1],
            tensor.type_name if tensor.type in _KNOWN_TYPES else f"type {tensor.type}",
            header.start + tensor.offset,
        )
        for tensor in header.tensors
    ]
