"""libllama's quantization of a language model, in a process of its own: it can be stopped, and may abort.

`python -m pocketvlm.native.quantize SOURCE TARGET TYPE THREADS` is that process; what libllama logs goes to its
standard error.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pocketvlm.errors import QuantizationError
from pocketvlm.native import library, log

_PREFIXES = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
_BUFFER = 32 << 20  # bytes of one tensor in memory together; libllama's default is 8 GiB
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")
_REASON = "failed to quantize: "


def file_types() -> dict[str, int]:
    """llama_ftype by the name that a person uses: F16, Q8_0, Q4_K_M, ..."""
    constants = vars(library.llama())
    return {name.removeprefix(p): value for name, value in constants.items() for p in _PREFIXES if name.startswith(p)}


def quantize_gguf(
    source: Path,
    target: Path,
    file_type: str,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `source`, a GGUF language model of F32, F16 or BF16, as `file_type` to `target`.

    `progress` gets the tensors done and their number. Raises QuantizationError with libllama's reason; that of
    a full disk is an "iostream error".
    """
    command = [sys.executable, "-m", __name__, str(source), str(target), file_type, str(threads or _cores())]
    last: deque[str] = deque(maxlen=5)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if (found := _TENSOR.match(line)) is None:
                    last.append(line.strip())
                elif progress is not None:
                    progress(int(found[1]), int(found[2]))
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code != 0:
        reason = next((line.partition(_REASON)[2] for line in last if _REASON in line), " / ".join(last))
        ended = f"process ended with signal {-code}: " if code < 0 else ""
        raise QuantizationError(f"libllama cannot quantize it to {file_type}: {ended}{reason}", source)


def quantize_here(source: Path, target: Path, file_type: str, threads: int) -> None:
    """The same in this process."""
    lib = library.llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_types()[file_type]
    params.nthread = threads
    params.max_buf_size = _BUFFER
    log.forget_errors()
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise QuantizationError(log.last_error(), source)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _main(source: str, target: str, file_type: str, threads: str) -> int:
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    log.logger.setLevel(logging.DEBUG)
    try:
        quantize_here(Path(source), Path(target), file_type, int(threads))
    except QuantizationError:
        return 1  # what libllama has logged says why
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
