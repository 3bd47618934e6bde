"""Quantize a language model with libllama, in a process of its own: it can be stopped, and libllama may abort it.

`python -m pocketvlm.native.quantize SOURCE TARGET TYPE` is that process. It writes libllama's log to standard error.
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
from pocketvlm.system.machine import allowed_cpus

_PREFIXES = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
_MAX_BUFFER = 32 << 20  # bytes of one tensor in memory at once; libllama's default is 8 GiB
_TENSOR_LINE = re.compile(r"\[ *(\d+)/ *(\d+)\] +(\S+) .* type = +(\w+)")
_NEW_TYPE_LINE = re.compile(r"size = .* -> .*\((\w+)\)")
_REASON = "failed to quantize: "


def file_types() -> dict[str, int]:
    """Return the numbers of llama_ftype by the names that people use: F16, Q8_0, Q4_K_M, ..."""
    constants = vars(library.llama())
    return {name.removeprefix(p): value for name, value in constants.items() for p in _PREFIXES if name.startswith(p)}


def row_bytes(kind: str, width: int) -> int:
    """Return the bytes of a row of `width` weights of type `kind`, such as Q4_K.

    Unlike the gguf package, this knows every type of the loaded libggml.
    """
    functions = library.ggml()
    functions.ggml_type_name.restype = ctypes.c_char_p
    functions.ggml_row_size.restype, functions.ggml_row_size.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]
    numbers = range(library.llama().GGML_TYPE_COUNT)
    names = [(functions.ggml_type_name(number) or b"").decode().upper() for number in numbers]
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
    `progress` gets the number of finished tensors and the number of all. Raises QuantizationError with libllama's
    reason; for a full disk it is "iostream error".
    """

    def report(line: str) -> bool:
        match = _TENSOR_LINE.match(line)
        if match and progress is not None:
            progress(int(match[1]), int(match[2]))
        return match is not None

    _run(source, target, file_type, matrix, threads, report)


def planned_types(source: Path, file_type: str, *, matrix: Path | None = None) -> dict[str, str]:
    """Return the type that `quantize_gguf` would give to each tensor, such as Q4_K; libllama decides.

    `source` may have holes instead of weights: only its header is read.
    """
    types: dict[str, str] = {}

    def record(line: str) -> bool:
        if tensor := _TENSOR_LINE.match(line):
            types[tensor[3]] = tensor[4].upper()
        elif types and (new_type := _NEW_TYPE_LINE.match(line)):
            types[next(reversed(types))] = new_type[1].upper()
        return tensor is not None

    _run(source, source.with_suffix(".none"), file_type, matrix, 1, record, "--dry-run")
    return types


def quantize_here(
    source: Path,
    target: Path,
    file_type: str,
    threads: int,
    matrix: Mapping[str, npt.NDArray[np.float32]] | None = None,
    dry_run: bool = False,
) -> None:
    """Do the same as `quantize_gguf` in this process; with `dry_run`, only log what would be done."""
    lib = library.llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_types()[file_type]
    params.nthread = threads
    params.max_buf_size = _MAX_BUFFER
    params.dry_run = dry_run
    if matrix is not None:
        params.imatrix = _entries(lib, matrix)  # the structure keeps the array alive
    log.forget_errors()
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise QuantizationError(log.last_error(), source)


def _entries(lib: Any, matrix: Mapping[str, npt.NDArray[np.float32]]) -> Any:
    """Return a C array of llama_model_imatrix_data, whose last entry has no name."""
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
    on_line: Callable[[str], bool],
    *options: str,
) -> None:
    options = (*options, *(("--matrix", str(matrix)) if matrix else ()), "--threads", str(threads or allowed_cpus()))
    exited = subprocess.run(__name__, str(source), str(target), file_type, *options, take=on_line)
    if exited.code != 0:
        lines = exited.lines
        reason = next((line.partition(_REASON)[2] for line in lines if _REASON in line), " / ".join(lines))
        raise QuantizationError(f"libllama cannot quantize it to {file_type}: {exited.signal}{reason}", source)


def _main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("source", "target"):
        parser.add_argument(name, type=Path)
    parser.add_argument("file_type")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--matrix", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    log.logger.setLevel(logging.DEBUG)
    matrix = dict(np.load(arguments.matrix)) if arguments.matrix else None
    source, target = arguments.source.absolute(), arguments.target.absolute()
    # On Windows, libllama opens what it writes by a name in the code page, which may not have the names of folders.
    os.chdir(target.parent)
    try:
        quantize_here(source, Path(target.name), arguments.file_type, arguments.threads, matrix, arguments.dry_run)
    except QuantizationError:
        return 1  # libllama has logged the reason
    return 0


if __name__ == "__main__":
    sys.exit(_main())
