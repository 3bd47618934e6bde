"""Run one of this package's modules in its own process, which reports its progress as lines on standard error."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from pocketvlm.errors import PocketVLMError
from pocketvlm.system import subprocess
from pocketvlm_converters.progress import Progress

_PROGRESS_LINE = re.compile(r"\[(\d+)/(\d+)\] (.+)$")


def run(module: str, *paths: Path, progress: Progress) -> str | None:
    """Run a module that ends with a call of `main`, with `paths` as its arguments.

    Returns the reason in one line if it failed, else None.
    """

    def forward(line: str) -> bool:
        match = _PROGRESS_LINE.match(line.strip())
        if match:
            progress(match[3], int(match[1]), int(match[2]))
        return match is not None

    exited = subprocess.run(module, *map(str, paths), take=forward)
    return f"{exited.signal}{' / '.join(exited.lines[-1:])}" if exited.code else None


def main(work: Callable[..., None]) -> None:
    """Call `work` with the paths of the command line and a Progress, then exit. A PocketVLMError becomes the reason."""

    def report(step: str, done: int, total: int) -> None:
        print(f"[{done}/{total}] {step}", file=sys.stderr, flush=True)

    try:
        work(*map(Path, sys.argv[1:]), report)
    except PocketVLMError as error:
        sys.exit(str(error))
    sys.exit(0)
