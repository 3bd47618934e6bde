"""Work of ours in a process of its own, and how it tells of its progress: lines on its standard error."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from pocketvlm.errors import PocketVLMError
from pocketvlm.system import subprocess
from pocketvlm_converters.progress import Progress

_DONE = re.compile(r"\[(\d+)/(\d+)\] (.+)$")


def run(module: str, *paths: Path, progress: Progress) -> str | None:
    """Run a module whose last act is `main`, with `paths`. Why it failed, in a line; None where it did not."""

    def take(line: str) -> bool:
        found = _DONE.match(line.strip())
        if found:
            progress(found[3], int(found[1]), int(found[2]))
        return found is not None

    ended = subprocess.run(module, *map(str, paths), take=take)
    return f"{ended.signal}{' / '.join(ended.lines[-1:])}" if ended.code else None


def main(work: Callable[..., None]) -> None:
    """`work` with the paths of the command line and a Progress; ends the process."""

    def show(step: str, done: int, total: int) -> None:
        print(f"[{done}/{total}] {step}", file=sys.stderr, flush=True)

    try:
        work(*map(Path, sys.argv[1:]), show)
    except PocketVLMError as error:
        sys.exit(str(error))
    sys.exit(0)
