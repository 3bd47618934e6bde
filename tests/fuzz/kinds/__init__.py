"""One file per kind of input: what is damaged, and what pocketvlm does with it.

A module offers

- `originals()`: sound files by name, made in a child (`run_in_child`) where native code begins threads
- `opened(work)`: a context in a child, which loads what cases share, and yields a function of (name of the original,
  damaged bytes). The function does what a user would do. It returns None after an answer or the text of a refusal,
  raises what pocketvlm raises, or `NotClean`
- `BATCH`: the number of cases that one child runs

Another kind of file is another module here, and one in `fuzz.formats` if no format there fits.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from fuzz.cases import Original

Attempt = Callable[[str, bytes], str | None]


@dataclass(frozen=True)
class Work:
    """`shared` holds what was prepared for all children. `own` is the folder of one child."""

    shared: Path
    own: Path

    def file(self, name: str, data: bytes) -> Path:
        """Write a file of this child."""
        path = self.own / name
        path.unlink(missing_ok=True)  # it may be a link to a sound file
        path.write_bytes(data)
        return path


class Kind(Protocol):
    BATCH: int

    def originals(self) -> dict[str, Original]: ...

    def opened(self, work: Work) -> AbstractContextManager[Attempt]: ...


def kinds() -> dict[str, Kind]:
    """Return every kind by its name."""
    modules: dict[str, Any] = {m.name: import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return modules
