"""Check the quantization types that a user requests, and quantize a language model."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pocketvlm.errors import QuantizationError, quoted
from pocketvlm.native.quantize import file_types, quantize_gguf
from pocketvlm.system.suggestions import one_of, similar_names
from pocketvlm_converters.gguf import PROJECTOR_TYPES, FloatType, ProjectorType, TensorEntry, read_tensors
from pocketvlm_converters.onnx.graph import ONNX_TYPES, OnnxType
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.quantization.imatrix import Matrix

T = TypeVar("T", bound=str)
FLOAT_TYPES: Mapping[str, FloatType] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# Without an importance matrix, libllama refuses these types, or the quantized model writes noise.
NEED_IMPORTANCE_MATRIX = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
)
_COMMON = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")  # suggested where nothing is similar
_READ_ONLY = frozenset({"NVFP4"})  # libllama reads this type but cannot write it
_BLOCK = 256  # weights in a block of the k-quants and most i-quants
# Types with blocks of at most 128 weights.
_SMALL_BLOCKS = frozenset({"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4_MOE", "Q1_0", "Q2_0"})


def language_types(with_matrix: bool = False) -> tuple[str, ...]:
    """Return every type that `quantize` accepts, with or without an importance matrix."""
    excluded = {*_READ_ONLY, *FLOAT_TYPES, *(() if with_matrix else NEED_IMPORTANCE_MATRIX)}
    return (*FLOAT_TYPES, *sorted(set(file_types()) - excluded))


def language_type(name: str, with_matrix: bool = False) -> str:
    """Return the type of a language model in upper case.

    Raises QuantizationError for an unknown type, and for one that needs an importance matrix or cannot use one.
    """
    kind = name.upper()
    if kind in NEED_IMPORTANCE_MATRIX and not with_matrix:
        raise QuantizationError(
            f'{kind} needs an importance matrix, without which its answers are noise; use imatrix="auto" or a file'
        )
    if kind not in (known := language_types(with_matrix)):
        similar = similar_names(name, sorted({*known, *NEED_IMPORTANCE_MATRIX}))
        advice = f"did you mean {one_of(similar)}?" if similar else f"use {one_of(_COMMON)}, for example"
        raise QuantizationError(f"unknown type {quoted(name)} of the language model; {advice}")
    if kind in FLOAT_TYPES and with_matrix:
        raise QuantizationError(f"{kind} is not quantized and cannot use an importance matrix; omit imatrix=")
    return kind


def projector_type(name: str) -> ProjectorType | None:
    """Return the type of the mmproj file; None for "none". Raises QuantizationError."""
    return _one_of("mmproj", name, PROJECTOR_TYPES)


def onnx_type(name: str) -> OnnxType | None:
    """Return the type of the ONNX vision encoder; None for "none". Raises QuantizationError."""
    return _one_of("ONNX", name, ONNX_TYPES)


def bundle_types(
    quantize: str, mmproj: str, onnx: str, *, with_matrix: bool = False
) -> tuple[str, ProjectorType | None, OnnxType | None]:
    """Return the types of the language model, the mmproj file and the ONNX vision encoder of a bundle.

    Raises QuantizationError, also for a bundle without any vision encoder.
    """
    types = language_type(quantize, with_matrix), projector_type(mmproj), onnx_type(onnx)
    if types[1:] == (None, None):
        raise QuantizationError("a bundle needs a vision encoder: mmproj and ONNX cannot both be none")
    return types


def _one_of(what: str, name: str, known: tuple[T, ...]) -> T | None:
    match = next((kind for kind in known if kind == name.lower()), None)
    if match is None and name.lower() != "none":
        raise QuantizationError(f"unknown {what} type {quoted(name)}; known: {', '.join(map(str, known))}, none")
    return match


def quantize_language(
    source: Path, target: Path, file_type: str, progress: Progress = silent, matrix: Matrix | None = None
) -> list[str]:
    """Quantize with libllama. Returns notes about tensors with another type, and about those without importances.

    Raises QuantizationError with libllama's reason, OutputError if the written file is incomplete.
    """
    step = f"quantize {file_type}"
    with saved_matrix(matrix, target) as stored:
        quantize_gguf(source, target, file_type, matrix=stored, progress=lambda done, all: progress(step, done, all))
    return [*fallbacks(read_tensors(target), file_type), *(matrix.notes() if matrix else ())]


@contextlib.contextmanager
def saved_matrix(matrix: Matrix | None, target: Path) -> Iterator[Path | None]:
    """Keep the matrix as a file next to `target`, while libllama reads it."""
    if matrix is None:
        yield None
        return
    path = target.with_suffix(".npz")
    try:
        matrix.save(path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def fallbacks(tensors: Sequence[TensorEntry], file_type: str) -> list[str]:
    """Return a note about matrices whose rows are not multiples of the block size, if `file_type` has large blocks."""
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    odd = [tensor for tensor in matrices if tensor.shape[-1] % _BLOCK and tensor.kind not in FLOAT_TYPES]
    if not odd or file_type in _SMALL_BLOCKS:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(tensor.kind for tensor in odd).most_common())
    widths = ", ".join(str(width) for width in sorted({tensor.shape[-1] for tensor in odd}))
    return [
        f"{len(odd)} of {len(matrices)} matrices have a larger type than {file_type} ({kinds}): "
        f"their row lengths ({widths}) are not multiples of {_BLOCK}"
    ]
