"""What a conversion would write, tensor by tensor, and the memory that it and the bundle would take.

A rehearsal, not a calculation: the same code writes the same files with holes for weights into a temporary folder,
and libllama itself says what type it would give to each tensor. So the sizes are those of the true files to the byte.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

import numpy as np

from pocketvlm.errors import ConversionError
from pocketvlm.files.bundle import Role
from pocketvlm.native.quantize import planned_types, row_bytes
from pocketvlm_converters.atomic import writing
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.export_parts import parts_of, write_encoder
from pocketvlm_converters.families import find_family
from pocketvlm_converters.gguf import TensorEntry, read_tensors, write_language, write_projector
from pocketvlm_converters.quantization.calibrate import AUTO
from pocketvlm_converters.quantization.imatrix import Matrix, column_counts, read_matrix
from pocketvlm_converters.quantization.quantize import (
    FLOAT_TYPES,
    bundle_types,
    fallbacks,
    saved,
)
from pocketvlm_converters.weights import Part

CONTEXT = 8192  # tokens that `pocketvlm chat` makes room for, unless it is told otherwise or the model has fewer
_ALIGNMENT = 32  # bytes, of a GGUF file's tensors
# Anonymous memory of a conversion in bytes, rough, so that it lies above the peaks of bench_convert_large.py: the
# program alone, with the child that quantizes, a token of the vocabulary, a weight of the largest matrix for ONNX.
_PROGRAM, _WITH_CHILD, _TOKEN, _WEIGHT = 60 << 20, 180 << 20, 1000, 8
_LAYER = re.compile(r"(\bblk\.|\blayers\.|\bblocks\.)\d+\.")


@dataclass(frozen=True)
class PlannedTensor:
    """`shape` in numpy's order, `kind` as in Q4_K or INT8, `size` in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int


@dataclass(frozen=True)
class PlannedFile:
    """`size` in bytes is the true file's; `tensors` are in its order."""

    name: str
    role: Role
    kind: str
    size: int
    tensors: tuple[PlannedTensor, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes. `converting` and `scratch` are estimates, of memory that cannot be given back to a file.

    `cache` is the KV cache of `context` tokens in float16, as if no layer had a sliding window.
    """

    files: tuple[PlannedFile, ...]
    notes: tuple[str, ...]
    converting: int
    context: int
    cache: int
    scratch: int

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weights(self) -> int:
        """Of the language model and the larger of its encoders: one is loaded."""
        sizes = {file.role: file.size for file in self.files}
        return sizes["model"] + max(sizes.get("mmproj", 0), sizes.get("vision", 0) + sizes.get("data", 0))

    @property
    def running(self) -> int:
        return self.weights + self.cache + self.scratch


def plan_conversion(
    checkpoint: str | Path,
    name: str,
    *,
    quantize: str = "Q4_K_M",
    mmproj: str = "q8_0",
    onnx: str = "int8",
    imatrix: str | Path | None = None,
) -> Plan:
    """What `convert` with the same arguments would write to a bundle called `name`. Raises what that would raise,
    OutputError also where there is no room for the temporary folder.

    Weights are looked at for the ONNX file only, so NaN elsewhere goes unnoticed, and no tokenizer is proven.
    """
    language, projector, graph = bundle_types(quantize, mmproj, onnx, with_matrix=imatrix is not None)
    family = find_family(Checkpoint(checkpoint))
    parts = parts_of(family, name, hashed=False)
    files: list[PlannedFile] = []
    notes = [*parts.vocabulary.notes]
    scratch = Path(tempfile.gettempdir())
    with writing(scratch), tempfile.TemporaryDirectory(prefix="pocketvlm-", dir=scratch) as where:
        folder = Path(where)
        if projector:
            path = folder / f"mmproj-{projector}.gguf"
            notes += write_projector(parts.vision, path, projector, meta=True)
            files.append(_gguf(path, "mmproj", projector, read_tensors(path)))
        if graph:
            path = folder / f"vision-{graph}.onnx"
            data = write_encoder(family, parts.vision, path, graph, meta=True)
            files.append(PlannedFile(path.name, "vision", graph, path.stat().st_size, tuple(_initializers(path))))
            if data:
                files.append(PlannedFile(data.name, "data", graph, data.stat().st_size))
        tensors, path = _language(parts.language, folder, language, imatrix)
        if language not in FLOAT_TYPES:
            notes += fallbacks(tensors, language)
        files.insert(0, _gguf(path, "model", language, tensors))
    context = min(_key(parts.language, "context_length"), CONTEXT)
    return Plan(
        tuple(files),
        tuple(notes),
        _converting(parts.language, parts.vision, graph),
        context,
        _cache(parts.language, context),
        _scratch(parts.language, parts.vision),
    )


def condensed(tensors: Sequence[PlannedTensor]) -> Iterator[tuple[int, PlannedTensor]]:
    """Tensors that differ in the number of their layer only, as one: how many, and `blk.*.` with the size of all."""

    def key(tensor: PlannedTensor) -> tuple[str, tuple[int, ...], str]:
        return _LAYER.sub(r"\1*.", tensor.name), tensor.shape, tensor.kind

    order = {found: number for number, found in reversed(list(enumerate(map(key, tensors))))}
    for (name, shape, kind), same in groupby(sorted(tensors, key=lambda t: order[key(t)]), key=key):
        sizes = [tensor.size for tensor in same]
        yield len(sizes), PlannedTensor(name, shape, kind, sum(sizes))


def _language(part: Part, folder: Path, kind: str, imatrix: str | Path | None) -> tuple[list[TensorEntry], Path]:
    """The tensors of the language model to be, and its hollow file of the right size."""
    path = folder / f"model-{kind}.gguf"
    if kind in FLOAT_TYPES:
        write_language(part, path, FLOAT_TYPES[kind], meta=True)
        return read_tensors(path), path
    write_language(part, path, None, meta=True)
    with saved(_matrix(part, imatrix, folder), path) as matrix:
        types = planned_types(path, kind, matrix=matrix)
    before = read_tensors(path)
    if types.keys() != {tensor.name for tensor in before}:
        raise ConversionError("libllama does not tell what it would do with every tensor", path)
    begin = min(tensor.offset for tensor in before)
    tensors = [TensorEntry(t.name, t.shape, types[t.name], t.offset) for t in before]
    with path.open("r+b") as file:
        file.truncate(begin + sum(-(-_size(t) // _ALIGNMENT) * _ALIGNMENT for t in tensors))
    return tensors, path


def _matrix(part: Part, imatrix: str | Path | None, folder: Path) -> Matrix | None:
    """The given one, or for "auto" one of ones: libllama's choices depend on whether there is one."""
    if imatrix is None:
        return None
    if imatrix == AUTO:
        ones = {name: np.ones(count, np.float32) for name, count in column_counts(part.weights).items()}
        return Matrix(folder / AUTO, "", ones)
    matrix = read_matrix(Path(imatrix))
    matrix.check_fits(part.weights)
    return matrix


def _gguf(path: Path, role: Role, kind: str, tensors: Iterable[TensorEntry]) -> PlannedFile:
    planned = tuple(PlannedTensor(t.name, t.shape, t.kind, _size(t)) for t in tensors)
    return PlannedFile(path.name, role, kind, path.stat().st_size, planned)


def _size(tensor: TensorEntry) -> int:
    return prod(tensor.shape[:-1]) * row_bytes(tensor.kind, tensor.shape[-1])


def _initializers(path: Path) -> Iterator[PlannedTensor]:
    import onnx

    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        shape = tuple(tensor.dims)
        yield PlannedTensor(tensor.name, shape, dtype.name.upper(), prod(shape) * dtype.itemsize)


def _converting(language: Part, vision: Part, graph: str | None) -> int:
    largest = max(weight.tensor.data.size for weight in vision.weights) if graph else 0
    return max(_WITH_CHILD, _PROGRAM + _WEIGHT * largest) + _TOKEN * _tokens(language)


def _tokens(part: Part) -> int:
    return next(weight.tensor.shape[0] for weight in part.weights if weight.name == "token_embd.weight")


def _cache(part: Part, context: int) -> int:
    key, value = (_key(part, f"attention.{name}") for name in ("key_length", "value_length"))
    heads = part.metadata[f"{part.architecture}.attention.head_count_kv"]  # of all layers, or of each
    each = heads if isinstance(heads, list) else [_key(part, "attention.head_count_kv")] * _key(part, "block_count")
    return 2 * context * sum(each) * (key + value)


def _scratch(language: Part, vision: Part) -> int:
    """Logits of a batch, and of the encoder the activations of a tile with one layer's attention in full."""
    keys = ("image_size", "patch_size", "attention.head_count", "embedding_length", "feed_forward_length")
    image, patch, heads, hidden, inner = (_key(vision, f"vision.{key}") for key in keys)
    patches = (image // patch) ** 2
    return 4 * (512 * _tokens(language) + patches * (heads * patches + 4 * hidden + 2 * inner))


def _key(part: Part, name: str) -> int:
    value = part.metadata[f"{part.architecture}.{name}"]
    assert isinstance(value, int), name
    return value
