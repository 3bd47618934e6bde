"""Choose the build of the native libraries to load, and check that it matches the installed llama-cpp-python."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import NativeLibraryError, quoted

LLAMA_CPP_PYTHON = "llama-cpp-python"
_BUILD_VARIABLE = "POCKETVLM_NATIVE"  # names an installed build, or LLAMA_CPP_PYTHON for the libraries in its package
# llama-cpp-python's own variables: where its modules load libllama and libmtmd from.
_LLAMA_PATH, _MTMD_PATH = "LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"
_STAMP = "pocketvlm.json"  # written by CMakeLists.txt
GPU_BUILDS = ("cuda", "metal", "vulkan")
_PREFERRED = (*GPU_BUILDS, "cpu-native", "cpu")  # from the most to the least specific to a machine


@dataclass(frozen=True)
class Build:
    """One build of the native libraries.

    `folder` holds the libraries; None: they are in llama-cpp-python's own package. `why` says why it was chosen.
    `stamped`: the build names the llama-cpp-python that it is for, and that version is installed.
    """

    name: str
    folder: Path | None
    why: str
    stamped: bool

    @property
    def label(self) -> str:
        """The versions that a measurement or a report is valid for."""
        return f"{LLAMA_CPP_PYTHON} {version()}" + (f", build {self.name}" if self.folder else "")


def version() -> str:
    """Return the version of the installed llama-cpp-python, or "not installed"."""
    try:
        return importlib.metadata.version(LLAMA_CPP_PYTHON)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def home() -> Path:
    """Return the folder, inside this Python's environment, where `cmake --build --target install` puts builds."""
    return Path(sys.prefix) / "lib" / "pocketvlm"


def installed() -> tuple[str, ...]:
    """Return the names of the builds in `home`, preferred ones first."""
    names = [path.parent.name for path in home().glob(f"*/{_STAMP}")]
    return tuple(sorted(names, key=lambda name: (*(name != preferred for preferred in _PREFERRED), name)))


def choose() -> Build:
    """Return the build that an environment variable names, else the best one that is installed.

    Raises NativeLibraryError where it does not exist, or is for another llama-cpp-python.
    """
    llama_path, choice, names = os.environ.get(_LLAMA_PATH), os.environ.get(_BUILD_VARIABLE), installed()
    if llama_path:
        return _checked(Path(llama_path).absolute(), f"{_LLAMA_PATH} names it")
    if choice and choice != LLAMA_CPP_PYTHON:
        if choice not in names:
            raise NativeLibraryError(
                f"{_BUILD_VARIABLE}={choice}: {home()} has no such build; "
                f"it has: {', '.join((*names, LLAMA_CPP_PYTHON))}; "
                f"to make it: cmake --preset {choice} && cmake --build --preset {choice} --target install"
            )
        return _checked(home() / choice, f"{_BUILD_VARIABLE} names it")
    if names and not choice:
        others = ", ".join((*names[1:], LLAMA_CPP_PYTHON))
        return _checked(
            home() / names[0], f"installed in this environment; {_BUILD_VARIABLE} can choose another: {others}"
        )
    why = f"{_BUILD_VARIABLE} names it" if choice else f"no other build in {home()}"
    return Build(LLAMA_CPP_PYTHON, None, why, True)


@contextmanager
def library_paths(build: Build) -> Iterator[None]:
    """Point llama-cpp-python's variables at `build` while its modules are imported."""
    before = {name: os.environ.get(name) for name in (_LLAMA_PATH, _MTMD_PATH)}
    for name, value in before.items():
        if build.folder and (name == _LLAMA_PATH or not value):
            os.environ[name] = str(build.folder)
        elif not value:
            os.environ.pop(name, None)  # an empty value would mean the working directory
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
        fields = json.loads(stamp.read_text(encoding="utf-8"))
        name, built_for = str(fields["build"]), str(fields["llama_cpp_python"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NativeLibraryError(
            f"{stamp}: not a stamp of a pocketvlm build ({quoted(error)}); build the libraries again"
        ) from error
    if built_for != version():
        own = f"unset {_LLAMA_PATH}" if os.environ.get(_LLAMA_PATH) else f"set {_BUILD_VARIABLE}={LLAMA_CPP_PYTHON}"
        raise NativeLibraryError(
            f"{folder}: these libraries are for llama-cpp-python {built_for}, but {version()} is installed, and its "
            f"structs differ; build them again, or {own}"
        )
    return Build(name, folder, why, True)
