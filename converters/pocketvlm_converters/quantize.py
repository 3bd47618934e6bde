"""The types of a language model by the names that people use, and what became of a quantization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pocketvlm.errors import QuantizationError
from pocketvlm.native.quantize import file_types, quantize_gguf
from pocketvlm_converters.gguf import PROJECTOR_TYPES, Progress, ProjectorType, TensorEntry, read_tensors, silent
from pocketvlm_converters.onnx import ONNX_TYPES, OnnxType

FLOAT_TYPES = ("F32", "F16", "BF16")
# libllama refuses these for ordinary weights without an importance matrix, or their result is noise.
NEED_IMPORTANCE_MATRIX = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
)
_NO_QUANTIZER = frozenset({"NVFP4"})  # a type that libllama reads but does not write
_BLOCK = 256  # weights in a block of the k- and most i-quants
_SMALL_BLOCKS = frozenset({"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4_MOE", "Q1_0", "Q2_0"})


def language_types() -> tuple[str, ...]:
    """Every type that `--quantize` takes."""
    others = sorted(set(file_types()) - NEED_IMPORTANCE_MATRIX - _NO_QUANTIZER - set(FLOAT_TYPES))
    return (*FLOAT_TYPES, *others)


def language_type(name: str) -> str:
    """`name` in any case -> as it is spelled. Raises QuantizationError: unknown, or needs an importance matrix."""
    wanted = name.upper()
    if wanted in NEED_IMPORTANCE_MATRIX:
        raise QuantizationError(
            f"{wanted} needs an importance matrix, which this converter does not make: its answers would be noise"
        )
    if wanted not in (known := language_types()):
        raise QuantizationError(f"unknown quantization {name!r}; known: {', '.join(known)}")
    return wanted


def projector_type(name: str) -> ProjectorType | None:
    """Likewise for the mmproj file; None for "none"."""
    for known in PROJECTOR_TYPES:
        if known == name.lower():
            return known
    _check_none("mmproj", name, PROJECTOR_TYPES)
    return None


def onnx_type(name: str) -> OnnxType | None:
    """Likewise for the ONNX vision encoder; None for "none"."""
    for known in ONNX_TYPES:
        if known == name.lower():
            return known
    _check_none("ONNX", name, ONNX_TYPES)
    return None


def _check_none(what: str, name: str, known: Sequence[str]) -> None:
    if name.lower() != "none":
        raise QuantizationError(f"unknown {what} type {name!r}; known: {', '.join(known)}, none")


def quantize_language(source: Path, target: Path, file_type: str, progress: Progress = silent) -> list[str]:
    """Quantize with libllama. Returns a line about tensors that had to take another type, if any did.

    Raises QuantizationError with libllama's reason, OutputError where the written file is not whole.
    """
    quantize_gguf(
        source, target, file_type, progress=lambda done, total: progress(f"quantize {file_type}", done, total)
    )
    return _fallbacks(read_tensors(target), file_type)


def _fallbacks(tensors: list[TensorEntry], file_type: str) -> list[str]:
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
