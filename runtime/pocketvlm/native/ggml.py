"""Find the functions of libggml, which libllama is linked to."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

from pocketvlm.errors import NativeLibraryError

_PARTS = ("ggml", "ggml-base")  # the first has the list of devices, the second nearly all else


class GGML:
    """The functions of libggml as attributes, as those of a ctypes library are.

    The loaders of Linux and macOS find them by the handle of libllama, whose dependencies they search, too. Windows
    searches one library only, so there `folder` must have those of libggml.
    """

    def __init__(self, libllama: ctypes.CDLL, folder: Path, *, system: str = sys.platform) -> None:
        self._libraries = [_load(folder, name) for name in _PARTS] if system == "win32" else [libllama]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library(name), name)

    def library(self, name: str) -> ctypes.CDLL:
        """Return the library that has the function of this name. Raises AttributeError."""
        for library in self._libraries:
            if hasattr(library, name):
                return library
        raise AttributeError(f"libggml has no {name}")


def _load(folder: Path, name: str) -> ctypes.CDLL:
    """Return a library that libllama has loaded already. MinGW's names begin with lib."""
    paths = [folder / f"{name}.dll", folder / f"lib{name}.dll"]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise NativeLibraryError(f"{folder}: has no {paths[0].name}; install llama-cpp-python again")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeLibraryError(f"cannot load {path}: {error}") from error
