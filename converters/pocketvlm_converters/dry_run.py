"""List what a conversion would write, tensor by tensor, and estimate the memory that it and the bundle need.

The same code as in a conversion writes meta files (with holes for weights) to a temporary folder, and libllama reports
the type it would give to each tensor, so the sizes are those of the real files to the byte.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from pocketvlm.errors import ConversionError
from pocketvlm.files.bundle import Role
from pocketvlm.native.quantize import planned_types, row_bytes
from pocketvlm_converters.atomic import os_errors_as_output_errors
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.checkpoint.lora import Lora
from pocketvlm_converters.export_parts import parts_of, write_encoder
from pocketvlm_converters.families import find_family
from pocketvlm_converters.gguf import TensorEntry, read_tensors, write_language, write_projector
from pocketvlm_converters.quantization.calibrate import AUTO
from pocketvlm_converters.quantization.imatrix import Matrix, column_counts, read_matrix
from pocketvlm_converters.quantization.quantize import FLOAT_TYPES, bundle_types, fallbacks, saved_matrix
from pocketvlm_converters.weights import Part, vocabulary_size

CONTEXT = 8192  # tokens: the default context of `pocketvlm chat`, for models that have as many
_ALIGNMENT = 32  # bytes, of a GGUF file's tensors
_LOGITS_BATCH = 512  # tokens
# Anonymous memory of a conversion in bytes, rounded up to lie above the peaks that bench_convert_large.py measures.
_PROGRAM = 60 << 20
_WITH_QUANTIZER = 180 << 20  # the program and the process that quantizes
_PER_TOKEN = 1000  # for each token of the vocabulary
_PER_ONNX_WEIGHT = 8  # for each weight of the largest matrix of the ONNX encoder
# The number of a layer in a tensor's name.
_LAYER = re.compile(r"(\bblk\.|\blayers\.|\bblocks\.)\d+\.")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor with its `shape` in numpy's order, `kind` as in Q4_K or INT8, `size` in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int


@dataclass(frozen=True)
class PlannedFile:
    """A file with its size in bytes and its tensors, in the file's order."""

    name: str
    role: Role
    kind: str
    size: int
    tensors: tuple[PlannedTensor, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a conversion would write and need; sizes are in bytes.

    `converting` and `scratch` are estimates of anonymous memory: of the conversion, and of the runtime's buffers.
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
        """Bytes of the language model and the larger of its encoders; only one of them is loaded."""
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
    lora: Sequence[Lora] = (),
) -> Plan:
    """Return what `convert` with the same arguments would write to a bundle called `name`.

    Raises the same errors as `convert`, and OutputError if the temporary folder cannot be written. Only the ONNX file's
    weights are read, so NaN elsewhere is not detected; the tokenizer is not proven.
    """
    language, projector, graph = bundle_types(quantize, mmproj, onnx, with_matrix=imatrix is not None)
    family = find_family(Checkpoint(checkpoint, lora))
    parts = parts_of(family, name, hashed=False)
    files: list[PlannedFile] = []
    notes = [*family.checkpoint.notes, *family.notes, *parts.vocabulary.notes]
    temporary = Path(tempfile.gettempdir())
    with (
        os_errors_as_output_errors(temporary),
        tempfile.TemporaryDirectory(prefix="pocketvlm-", dir=temporary) as folder_name,
    ):
        folder = Path(folder_name)
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
        _conversion_memory(parts.language, parts.vision, graph),
        context,
        _cache_size(parts.language, context),
        _scratch_size(parts.language, parts.vision),
    )


def condensed(tensors: Sequence[PlannedTensor]) -> Iterator[tuple[int, PlannedTensor]]:
    """Combine tensors that differ only in their layer's number, in order of their first occurrence.

    Yields how many there are and one tensor for all of them, named `blk.*.` and with the sum of their sizes.
    """
    sizes: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for tensor in tensors:
        key = _LAYER.sub(r"\1*.", tensor.name), tensor.shape, tensor.kind
        sizes.setdefault(key, []).append(tensor.size)
    for key, group in sizes.items():
        yield len(group), PlannedTensor(*key, sum(group))


def _language(part: Part, folder: Path, kind: str, imatrix: str | Path | None) -> tuple[list[TensorEntry], Path]:
    """Write a meta file of the language model, with its final size. Returns its tensors and its path."""
    path = folder / f"model-{kind}.gguf"
    if kind in FLOAT_TYPES:
        write_language(part, path, FLOAT_TYPES[kind], meta=True)
        return read_tensors(path), path
    write_language(part, path, None, meta=True)
    with saved_matrix(_matrix(part, imatrix, folder), path) as matrix:
        types = planned_types(path, kind, matrix=matrix)
    originals = read_tensors(path)
    if types.keys() != {tensor.name for tensor in originals}:
        raise ConversionError("libllama did not report the type of every tensor", path)
    begin = min(tensor.offset for tensor in originals)
    tensors = [replace(tensor, kind=types[tensor.name]) for tensor in originals]
    with path.open("r+b") as file:
        file.truncate(begin + sum(-(-_size(t) // _ALIGNMENT) * _ALIGNMENT for t in tensors))
    return tensors, path


def _matrix(part: Part, imatrix: str | Path | None, folder: Path) -> Matrix | None:
    """Return the importance matrix to plan with: for "auto" one of ones.

    libllama's choice of types depends only on whether there is a matrix, not on its values.
    """
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


def _conversion_memory(language: Part, vision: Part, graph: str | None) -> int:
    largest = max(weight.tensor.data.size for weight in vision.weights) if graph else 0
    return max(_WITH_QUANTIZER, _PROGRAM + _PER_ONNX_WEIGHT * largest) + _PER_TOKEN * vocabulary_size(language)


def _cache_size(part: Part, context: int) -> int:
    key_length, value_length = (_key(part, f"attention.{name}_length") for name in ("key", "value"))
    heads = part.metadata[f"{part.architecture}.attention.head_count_kv"]  # for all layers, or a list by layer
    by_layer = heads if isinstance(heads, list) else [_key(part, "attention.head_count_kv")] * _key(part, "block_count")
    recurrent = part.metadata.get(f"{part.architecture}.attention.recurrent_layers")  # flags by layer
    if isinstance(recurrent, list):
        by_layer = [0 if keeps_state else count for count, keeps_state in zip(by_layer, recurrent, strict=True)]
    return 2 * context * sum(by_layer) * (key_length + value_length)  # float16


def _scratch_size(language: Part, vision: Part) -> int:
    """Estimate the logits of a batch, and the encoder's activations for a tile, with one layer's full attention."""
    keys = ("image_size", "patch_size", "attention.head_count", "embedding_length", "feed_forward_length")
    image, patch, heads, hidden, inner = (_key(vision, f"vision.{key}") for key in keys)
    patches = (image // patch) ** 2
    activations = patches * (heads * patches + 4 * hidden + 2 * inner)
    return 4 * (_LOGITS_BATCH * vocabulary_size(language) + activations)  # float32


def _key(part: Part, name: str) -> int:
    value = part.metadata[f"{part.architecture}.{name}"]
    assert isinstance(value, int), name
    return value
