"""libllama's quantization of a language model, in a process of its own: it can be stopped, and may abort.

`python -m pocketvlm.native.quantize SOURCE TARGET TYPE` is that process; what libllama logs goes to its standard
error.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import QuantizationError
from pocketvlm.native import library, log
from pocketvlm.system import subprocess

_PREFIXES = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
_BUFFER = 32 << 20  # bytes of one tensor in memory together; libllama's default is 8 GiB
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] +(\S+) .* type = +(\w+)")
_CHANGED = re.compile(r"size = .* -> .*\((\w+)\)")
_REASON = "failed to quantize: "


def file_types() -> dict[str, int]:
    """llama_ftype by the name that a person uses: F16, Q8_0, Q4_K_M, ..."""
    constants = vars(library.llama())
    return {name.removeprefix(p): value for name, value in constants.items() for p in _PREFIXES if name.startswith(p)}


def row_bytes(kind: str, width: int) -> int:
    """What a row of `width` weights takes as `kind`, as in Q4_K; also of types that the gguf package does not know."""
    lib = library.llama()
    functions = lib._lib
    functions.ggml_type_name.restype = ctypes.c_char_p
    functions.ggml_row_size.restype, functions.ggml_row_size.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]
    names = [(functions.ggml_type_name(number) or b"").decode().upper() for number in range(lib.GGML_TYPE_COUNT)]
    return int(functions.ggml_row_size(names.index(kind), width))


def quantize_gguf(
    source: Path,
    target: Path,
    file_type: str,
    *,
    matrix: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `source`, a GGUF language model of F32, F16 or BF16, as `file_type` to `target`.

    `matrix` is an .npz file with float32 [in] (or [experts * in]) by the names of tensors: the importance of columns.
    `progress` gets the tensors done and their number. Raises QuantizationError with libllama's reason; that of
    a full disk is an "iostream error".
    """

    def take(line: str) -> bool:
        found = _TENSOR.match(line)
        if found and progress is not None:
            progress(int(found[1]), int(found[2]))
        return found is not None

    _run(source, target, file_type, matrix, threads, take)


def planned_types(source: Path, file_type: str, *, matrix: Path | None = None) -> dict[str, str]:
    """The type that `quantize_gguf` would give to each tensor, as in Q4_K, by libllama's own decision.

    `source` may be a file with holes instead of weights: only its header is read.
    """
    types: dict[str, str] = {}

    def take(line: str) -> bool:
        if found := _TENSOR.match(line):
            types[found[3]] = found[4].upper()
        elif types and (changed := _CHANGED.match(line)):
            types[next(reversed(types))] = changed[1].upper()
        return found is not None

    _run(source, source.with_suffix(".none"), file_type, matrix, 1, take, "--dry-run")
    return types


def quantize_here(
    source: Path,
    target: Path,
    file_type: str,
    threads: int,
    matrix: Mapping[str, npt.NDArray[np.float32]] | None = None,
    dry_run: bool = False,
) -> None:
    """The same in this process; `dry_run` only logs what would be done."""
    lib = library.llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_types()[file_type]
    params.nthread = threads
    params.max_buf_size = _BUFFER
    params.dry_run = dry_run
    if matrix is not None:
        params.imatrix = _entries(lib, matrix)  # which the structure keeps alive
    log.forget_errors()
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise QuantizationError(log.last_error(), source)


def _entries(lib: Any, matrix: Mapping[str, npt.NDArray[np.float32]]) -> Any:
    """A C array of llama_model_imatrix_data; the last entry has no name."""
    entries = (lib.llama_model_imatrix_data * (len(matrix) + 1))()
    entries.keep = arrays = [np.ascontiguousarray(values, np.float32) for values in matrix.values()]
    for entry, name, values in zip(entries, matrix, arrays, strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def _run(
    source: Path,
    target: Path,
    file_type: str,
    matrix: Path | None,
    threads: int | None,
    take: Callable[[str], bool],
    *options: str,
) -> None:
    more = (*options, *(("--matrix", str(matrix)) if matrix else ()), "--threads", str(threads or _cores()))
    ended = subprocess.run(__name__, str(source), str(target), file_type, *more, take=take)
    if ended.code != 0:
        reason = next((line.partition(_REASON)[2] for line in ended.lines if _REASON in line), " / ".join(ended.lines))
        raise QuantizationError(f"libllama cannot quantize it to {file_type}: {ended.signal}{reason}", source)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("source", "target"):
        parser.add_argument(name, type=Path)
    parser.add_argument("file_type")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--matrix", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    log.logger.setLevel(logging.DEBUG)
    matrix = dict(np.load(given.matrix)) if given.matrix else None
    try:
        quantize_here(given.source, given.target, given.file_type, given.threads, matrix, given.dry_run)
    except QuantizationError:
        return 1  # what libllama has logged says why
    return 0


if __name__ == "__main__":
    sys.exit(_main())
