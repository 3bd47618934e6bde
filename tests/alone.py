"""Tests that need the machine for themselves (`pytest.mark.alone`), beside pytest-xdist's workers that do not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ONE_CORE = "POCKETVLM_TEST_ONE_CORE"  # offline/sitecustomize.py shows a process that has it one core


class Turns:
    """Work that is shared may run in several processes at once, work that is not only when nothing else does."""

    def __init__(self, folder: Path) -> None:
        self._gate, self._inside = folder / "gate", folder / "inside"

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        import fcntl

        with ExitStack() as stack:
            inside = stack.enter_context(self._inside.open("w"))
            with self._gate.open("w") as gate:  # held by who waits to be alone, so that nobody else goes in
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield


@contextmanager
def cores(*, all: bool) -> Iterator[None]:
    """Show this process and its children one core, or all that there are."""
    if all:
        os.environ.pop(ONE_CORE, None)
    else:
        os.environ[ONE_CORE] = "1"
    try:
        yield
    finally:
        os.environ.pop(ONE_CORE, None)
