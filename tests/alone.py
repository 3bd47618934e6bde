"""Let a test that is marked `alone` have the machine for itself while pytest-xdist runs several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ONE_CORE = "POCKETVLM_TEST_ONE_CORE"  # offline/sitecustomize.py shows one core to a process that has this variable


class Turns:
    """A lock between processes, in `folder`: shared by ordinary tests, exclusive for a test that must be alone."""

    def __init__(self, folder: Path) -> None:
        self._gate, self._inside = folder / "gate", folder / "inside"

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        import fcntl

        with self._inside.open("w") as inside:
            with self._gate.open("w") as gate:  # held while waiting, so that no other test overtakes this one
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield


@contextmanager
def cores(*, all: bool) -> Iterator[None]:
    """Show all cores to this process and its children, or only one."""
    if not all:
        os.environ[ONE_CORE] = "1"
    try:
        yield
    finally:
        os.environ.pop(ONE_CORE, None)
