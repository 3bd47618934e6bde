"""Find instructions that the processor lacks and the CPU backend was compiled for: the first would end the process."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from importlib import import_module

from pocketvlm.native.ggml import GGML

# What ggml_cpu_has_... says of the compiler's options, and numpy's name of the same.
_NAMES = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA3",
    "f16c": "F16C",
    "bmi2": "BMI2",
    "avx512": "AVX512F",
    "avx512_vbmi": "AVX512VBMI",
    "avx512_vnni": "AVX512VNNI",
    "avx512_bf16": "AVX512BF16",
    "dotprod": "ASIMDDP",
    "fp16_va": "ASIMDHP",
    "sve": "SVE",
}


def missing_instructions(functions: GGML) -> list[str]:
    """Return numpy's names of the instructions that are missing; none where the backend is chosen when it is loaded.

    An instruction that this numpy does not know counts as there.
    """
    if platform.machine() in ("arm64", "aarch64") and not sys.platform.startswith("linux"):
        return []  # there numpy has what it was compiled with, and does not ask the processor
    compiled = [name for name in _NAMES if _is_compiled(functions, name)]
    processor = _of_processor() if compiled else {}
    return [_NAMES[name] for name in compiled if not processor.get(_NAMES[name], True)]


def _is_compiled(functions: GGML, name: str) -> bool:
    try:
        return bool(getattr(functions, f"ggml_cpu_has_{name}")())
    except AttributeError:
        return False


def _of_processor() -> dict[str, bool]:
    """Return what numpy has asked the processor for; nothing where a later numpy has it elsewhere."""
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):  # numpy 2 and 1
        with suppress(ImportError):
            return dict(getattr(import_module(name), "__cpu_features__", {}))
    return {}
