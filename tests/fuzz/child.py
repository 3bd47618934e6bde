"""What runs in a forked child: case after case, each reported to the parent before and after."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from fuzz.cases import Case, Original
from fuzz.kinds import Kind, Work
from fuzz.outcomes import ANSWERED, NotClean, Verdict, of_exception, refusal
from pocketvlm.errors import PocketVLMError

_PR_SET_PDEATHSIG = 1  # sys/prctl.h
_RESET_PEAK = "5"  # proc(5), clear_refs


def run(
    kind: Kind, originals: dict[str, Original], cases: Sequence[Case], work: Work, log: Path, pipe: int
) -> NoReturn:
    """Run the cases, write their verdicts to `pipe` as lines of JSON, and end the process."""
    try:
        _prepare(log)
        with kind.opened(work) as attempt:
            for number, case in enumerate(cases):
                os.truncate(log, 0)
                _reset_peak()
                _send(pipe, {"begin": number})
                began = time.monotonic()
                verdict = _judge(attempt, case, originals)
                verdict = replace(verdict, seconds=time.monotonic() - began, peak=_peak())
                _send(pipe, {"end": number, "verdict": asdict(verdict)})
        os._exit(0)
    except BaseException as error:  # of the harness itself
        _send(pipe, {"error": of_exception(error).detail})
        os._exit(1)


def _prepare(log: Path) -> None:
    os.setsid()  # a process group of its own, with what it starts
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    written = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, nothing), (1, nothing), (2, written)):
        os.dup2(source, target)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us


def _judge(attempt: Any, case: Case, originals: dict[str, Original]) -> Verdict:
    data = originals[case.original].damaged(case.mutations)
    try:
        refused = attempt(case.original, data)
    except PocketVLMError as error:
        return refusal(str(error))
    except NotClean as caught:
        return caught.verdict
    except MemoryError as error:
        return refusal(f"out of memory: {error}")  # as the commands report it
    except BaseException as error:  # pyo3's PanicException is not an Exception
        return of_exception(error)
    return Verdict(ANSWERED) if refused is None else refusal(refused)


def _send(pipe: int, message: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")


def _reset_peak() -> None:
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
