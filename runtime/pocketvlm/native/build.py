"""Which build of the native libraries is loaded, and why; whether it belongs to the installed llama-cpp-python."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import NativeLibraryError

CHOICE = "POCKETVLM_NATIVE"  # the name of an installed build, or OWN
OWN = "llama-cpp-python"
# llama-cpp-python's own variables: where its modules load libllama and libmtmd from.
_LLAMA_PATH, _MTMD_PATH = "LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"
_STAMP = "pocketvlm.json"
# Of several installed builds, the first one: the most particular to a machine.
GPU_BUILDS = ("cuda", "metal", "vulkan")
_PREFERRED = (*GPU_BUILDS, "cpu-native", "cpu")


@dataclass(frozen=True)
class Build:
    """`folder` holds the libraries, None: those in llama-cpp-python's own package. `why` it was taken.

    `stamped`: it says which llama-cpp-python it is for, and that is the installed one.
    """

    name: str
    folder: Path | None
    why: str
    stamped: bool

    @property
    def label(self) -> str:
        """What a measurement or a report holds for."""
        return f"{OWN} {version()}" + (f", build {self.name}" if self.folder else "")


def version() -> str:
    """The installed llama-cpp-python's, or "not installed"."""
    try:
        return importlib.metadata.version(OWN)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def home() -> Path:
    """Where `cmake --build --target install` puts a folder for each build: inside this Python's environment."""
    return Path(sys.prefix) / "lib" / "pocketvlm"


def installed() -> tuple[str, ...]:
    """Names of the builds in `home`, those that are preferred first."""
    names = [path.parent.name for path in home().glob(f"*/{_STAMP}")]
    return tuple(sorted(names, key=lambda name: (*(name != first for first in _PREFERRED), name)))


def choose() -> Build:
    """The build to load: the one that an environment variable names, else the best of those installed.

    Raises NativeLibraryError where it is not there, or is for another llama-cpp-python.
    """
    given, choice, names = os.environ.get(_LLAMA_PATH), os.environ.get(CHOICE), installed()
    if given:
        return _checked(Path(given).absolute(), f"{_LLAMA_PATH} names it")
    if choice and choice != OWN:
        if choice not in names:
            raise NativeLibraryError(
                f"{CHOICE}={choice}: no such build in {home()}; there: {', '.join((*names, OWN))}; "
                f"to make it: cmake --preset {choice} && cmake --build --preset {choice} --target install"
            )
        return _checked(home() / choice, f"{CHOICE} names it")
    if names and not choice:
        others = ", ".join((*names[1:], OWN))
        return _checked(home() / names[0], f"installed in this environment; {CHOICE} chooses another: {others}")
    return Build(OWN, None, f"{CHOICE} names it" if choice else f"no other build in {home()}", True)


@contextmanager
def pointed_at(build: Build) -> Iterator[None]:
    """While llama-cpp-python is imported: its variables say where the libraries are."""
    before = {name: os.environ.get(name) for name in (_LLAMA_PATH, _MTMD_PATH)}
    for name, value in before.items():
        if build.folder and (name == _LLAMA_PATH or not value):
            os.environ[name] = str(build.folder)
        elif not value:
            os.environ.pop(name, None)  # empty, it would mean the working directory
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _checked(folder: Path, why: str) -> Build:
    stamp = folder / _STAMP
    if not folder.is_dir():
        raise NativeLibraryError(f"{folder}: no such folder of native libraries ({why})")
    if not stamp.exists():
        return Build("unknown", folder, why, False)
    try:
        written = json.loads(stamp.read_text(encoding="utf-8"))
        name, bound = str(written["build"]), str(written["llama_cpp_python"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NativeLibraryError(f"{stamp}: not a stamp of pocketvlm's build: {error!r}") from error
    if bound != version():
        without = f"unset {_LLAMA_PATH}" if os.environ.get(_LLAMA_PATH) else f"set {CHOICE}={OWN}"
        raise NativeLibraryError(
            f"{folder}: libraries for llama-cpp-python {bound}, but {version()} is installed, and its structs differ; "
            f"build them again, or {without}"
        )
    return Build(name, folder, why, True)
