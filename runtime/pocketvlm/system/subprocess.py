"""Run one of our modules in a process of its own: it can be stopped, and an abort in native code ends nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_KEPT_LINES = 5
# Not `python -m`: it looks for modules in the working directory first, which may be a downloaded folder.
_COMMAND = (
    "import sys; sys.path = [folder for folder in sys.path if folder]; import runpy; "
    "from pocketvlm.system import offline; offline.enforce_if_requested(); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class ExitedProcess:
    """`code` is 0, an exit status, or minus the number of a signal; `lines` are the last ones that `take` refused."""

    code: int
    lines: tuple[str, ...]

    @property
    def signal(self) -> str:
        """The beginning of a sentence about the signal, "" where there was none."""
        return f"process ended with signal {-self.code}: " if self.code < 0 else ""


def run(module: str, *arguments: str, take: Callable[[str], bool]) -> ExitedProcess:
    """Run `python -m module arguments` to its end, without the modules of the working directory.

    `take` is called with each line of its standard error, and returns whether it has handled the line. Whatever is
    raised meanwhile, even KeyboardInterrupt, kills the process first.
    """
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if not take(line):
                    last.append(line.strip())
            return ExitedProcess(process.wait(), tuple(last))
        except BaseException:  # Ctrl-C too: no other code can end the process
            process.kill()
            raise
