"""Run `pocketvlm` in this process, as its entry point does."""

from __future__ import annotations

import io
import os
import sys

from fuzz.outcomes import MESSAGE, TRACEBACK, not_clean
from pocketvlm.cli import main

_ERROR = "error: "
_WRONG = 2  # exit code of wrong input


def command(*arguments: object, stdin: str = "") -> str | None:
    """Return None where the command ends well, or the message of its error.

    Raises NotClean for an exit code other than 0 and 2, and where the error is not one line.
    """
    start = os.fstat(2).st_size
    sys.argv = ["pocketvlm", *map(str, arguments)]
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        main()
        code: object = 0
    except SystemExit as ended:
        code = ended.code or 0
    sys.stderr.flush()
    if code == 0:
        return None
    written = _written_since(start)
    if code != _WRONG:
        not_clean(TRACEBACK, f"{arguments[0]} exits with {code!r}: {written.strip()[-80:]}", written)
    lines = written.strip().splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith(_ERROR)]
    if len(errors) != 1:
        not_clean(MESSAGE, f"{arguments[0]} exits with 2 without one error line", written)
    return "\n".join(lines[errors[0] :]).removeprefix(_ERROR)


def _written_since(start: int) -> str:
    """Read back what file descriptor 2, a log file, has received since."""
    size = os.fstat(2).st_size - start
    return os.pread(2, size, start).decode("utf-8", "surrogateescape")
