"""Run one of our modules in a process of its own: it can be stopped, and an abort in native code ends nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.system import windows
from pocketvlm.system.limits import ONE_BLAS_THREAD

# Options of a process that Ctrl-C in a terminal does not reach: that is for its parent. In another session, it would
# compete with its parent for cores, sched(7).
OWN_GROUP: Any = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
if sys.platform == "win32":
    OWN_GROUP = {"creationflags": windows.NO_CONTROL_C}
KILLED = -9  # exit code of a process that was killed from outside; on Windows it is 1, as for other reasons
REQUESTED_ENDS = (-2, -15, windows.ENDED_BY_CONTROL_C)  # exit codes by SIGINT, SIGTERM and Ctrl-C
_PIPES: Any = {
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.DEVNULL,
    **OWN_GROUP,
}
_KEPT_LINES = 5
_RUN_MODULE = (
    "import runpy; from pocketvlm.system import offline; offline.enforce_if_requested(); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_END_WITH_PARENT = "from pocketvlm.system.subprocess import end_with_parent; end_with_parent(); "


@dataclass(frozen=True)
class ExitedProcess:
    """`code` is 0, an exit status, or minus the number of a signal; `lines` are the last ones that `take` refused."""

    code: int
    lines: tuple[str, ...]

    @property
    def signal(self) -> str:
        """The beginning of a sentence about how it was ended, "" where it ended by itself."""
        if self.code < 0:
            return f"process ended with signal {-self.code}: "
        return f"process {ending(self.code)}: " if self.code in windows.ENDINGS else ""


def ending(code: int | None) -> str:
    """Say how a process with this exit code ended."""
    if code in windows.ENDINGS:
        return f"was ended by {windows.ENDINGS[code]} (0x{code:X})"
    if code is None or code >= 0:
        return f"ended with status {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


class PrefixedLines:
    """Collects what a process reports on standard error, for `take` of `run`: the lines that begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.lines: list[str] = []  # without the prefix

    def __call__(self, line: str) -> bool:
        if not line.startswith(self._prefix):
            return False
        self.lines.append(line.removeprefix(self._prefix))
        return True


def can_start() -> bool:
    """Return whether `sys.executable` is a Python that runs our modules; in an app that is one file it is the app."""
    return not getattr(sys, "frozen", False)


def python(code: str, *arguments: str) -> list[str]:
    """Return the command of a Python that runs `code`, which finds the modules that this one finds.

    Unlike `python -m`, it does not look for modules in the working directory, which may be a downloaded folder.
    """
    paths = [str(Path(path).absolute()) for path in sys.path if path]
    end = len(paths) + 1
    prepare = f"import sys; sys.path[:] = sys.argv[1:{end}]; del sys.argv[1:{end}]; "
    return [sys.executable, "-c", prepare + code, *paths, *arguments]


def run(
    module: str, *arguments: str, take: Callable[[str], bool], seconds: float = threading.TIMEOUT_MAX
) -> ExitedProcess:
    """Run `python -m module arguments` to its end, which comes with that of this process, too.

    `take` is called with each line of its standard error, and returns whether it has handled the line. Whatever is
    raised meanwhile, even KeyboardInterrupt, kills the process first. Raises TimeoutError where it takes more than
    `seconds`.
    """
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    with subprocess.Popen(
        python(_END_WITH_PARENT + _RUN_MODULE, module, *arguments),
        stdin=subprocess.PIPE,  # never written to: it closes when this process ends, however it does
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        try:
            if seconds < threading.TIMEOUT_MAX:
                timer.start()
            assert process.stderr is not None
            for line in process.stderr:
                if not take(line):
                    last.append(line.strip())
            code = process.wait()
        except BaseException:  # Ctrl-C too: no other code can end the process
            process.kill()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise TimeoutError(f"not done after {seconds:.0f} s")
    return ExitedProcess(code, tuple(last))


def end_with_parent() -> None:
    """End this process when its standard input closes, as it does when the parent ends; for others, it is empty."""
    pipe = os.dup(0)
    # On Windows, a library that looks at standard input would wait while another thread reads from it.
    with Path(os.devnull).open("rb") as empty:
        os.dup2(empty.fileno(), 0)

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        os._exit(1)

    with suppress(RuntimeError):  # the system gives no thread
        threading.Thread(target=watch, name="pocketvlm-parent", daemon=True).start()


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Start `python -m module arguments` with pipes as standard input and output.

    Ctrl-C in a terminal does not reach the process. What it writes to standard error is dropped.
    """
    return subprocess.Popen(python(_RUN_MODULE, module, *arguments), text=True, encoding="utf-8", **_PIPES)


def start_binary(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a process as `start` does, with pipes of bytes. It may use NumPy where threads or memory are few."""
    environment = {**ONE_BLAS_THREAD, **os.environ}
    return subprocess.Popen(python(_RUN_MODULE, module, *arguments), env=environment, **_PIPES)
