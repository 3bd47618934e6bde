"""The types of a language model by the names that people use, and what became of a quantization."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pocketvlm.errors import QuantizationError
from pocketvlm.native.quantize import file_types, quantize_gguf
from pocketvlm_converters.gguf import PROJECTOR_TYPES, FloatType, ProjectorType, TensorEntry, read_tensors
from pocketvlm_converters.onnx.graph import ONNX_TYPES, OnnxType
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.quantization.imatrix import Matrix

T = TypeVar("T", bound=str)
FLOAT_TYPES: Mapping[str, FloatType] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# libllama refuses these for ordinary weights without an importance matrix, or their result is noise.
NEED_IMPORTANCE_MATRIX = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
)
_NO_QUANTIZER = frozenset({"NVFP4"})  # a type that libllama reads but does not write
_BLOCK = 256  # weights in a block of the k- and most i-quants
_SMALL_BLOCKS = frozenset({"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4_MOE", "Q1_0", "Q2_0"})


def language_types(with_matrix: bool = False) -> tuple[str, ...]:
    """Every type that `--quantize` takes."""
    refused = {*_NO_QUANTIZER, *FLOAT_TYPES, *(() if with_matrix else NEED_IMPORTANCE_MATRIX)}
    return (*FLOAT_TYPES, *sorted(set(file_types()) - refused))


def language_type(name: str, with_matrix: bool = False) -> str:
    """`name` in any case -> as it is spelled.

    Raises QuantizationError: unknown, needs an importance matrix and has none, or has no use for one.
    """
    wanted = name.upper()
    if wanted in NEED_IMPORTANCE_MATRIX and not with_matrix:
        raise QuantizationError(
            f"{wanted} needs an importance matrix (--imatrix auto, or a file): without one its answers are noise"
        )
    if wanted not in (known := language_types(with_matrix)):
        more = "" if with_matrix else f"; with --imatrix also {', '.join(sorted(NEED_IMPORTANCE_MATRIX))}"
        raise QuantizationError(f"unknown quantization {name!r}; known: {', '.join(known)}{more}")
    if wanted in FLOAT_TYPES and with_matrix:
        raise QuantizationError(f"{wanted} is not quantized: it has no use for an importance matrix")
    return wanted


def projector_type(name: str) -> ProjectorType | None:
    """Likewise for the mmproj file; None for "none"."""
    return _one_of("mmproj", name, PROJECTOR_TYPES)


def onnx_type(name: str) -> OnnxType | None:
    """Likewise for the ONNX vision encoder; None for "none"."""
    return _one_of("ONNX", name, ONNX_TYPES)


def bundle_types(
    quantize: str, mmproj: str, onnx: str, *, with_matrix: bool = False
) -> tuple[str, ProjectorType | None, OnnxType | None]:
    """The three of a bundle. Raises QuantizationError likewise, and for one without any vision encoder."""
    found = language_type(quantize, with_matrix), projector_type(mmproj), onnx_type(onnx)
    if found[1:] == (None, None):
        raise QuantizationError("a bundle needs a vision encoder: mmproj and ONNX cannot both be none")
    return found


def _one_of(what: str, name: str, known: tuple[T, ...]) -> T | None:
    found = next((one for one in known if one == name.lower()), None)
    if found is None and name.lower() != "none":
        raise QuantizationError(f"unknown {what} type {name!r}; known: {', '.join(map(str, known))}, none")
    return found


def quantize_language(
    source: Path, target: Path, file_type: str, progress: Progress = silent, matrix: Matrix | None = None
) -> list[str]:
    """Quantize with libllama. Returns a line about tensors that had to take another type, if any did.

    Raises QuantizationError with libllama's reason, OutputError where the written file is not whole.
    """
    step = f"quantize {file_type}"
    with saved(matrix, target) as stored:
        quantize_gguf(source, target, file_type, matrix=stored, progress=lambda done, all: progress(step, done, all))
    return fallbacks(read_tensors(target), file_type)


@contextlib.contextmanager
def saved(matrix: Matrix | None, target: Path) -> Iterator[Path | None]:
    """The matrix as a file beside `target`, while libllama works."""
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
    """A line about matrices whose rows no block of `file_type` fits."""
    matrices = [t for t in tensors if len(t.shape) > 1]
    odd = [t for t in matrices if t.shape[-1] % _BLOCK and t.kind not in FLOAT_TYPES]
    if not odd or file_type in _SMALL_BLOCKS:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(t.kind for t in odd).most_common())
    widths = ", ".join(str(width) for width in sorted({t.shape[-1] for t in odd}))
    return [
        f"{len(odd)} of {len(matrices)} matrices are larger than {file_type} says ({kinds}): "
        f"their rows of {widths} are no multiple of {_BLOCK}"
    ]
