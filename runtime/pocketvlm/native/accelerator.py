"""The accelerator of prompts: our own library next to ggml's CPU backend.

It computes products of many rows, and what recurrent layers do with many tokens. It is built where a compiler is.
Without it everything works, and prompts take longer.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import NativeLibraryError

VARIABLE = "POCKETVLM_ACCELERATOR"  # names a kernel, or OFF
OFF = "off"
_TYPES = frozenset((2, 6, 8, 12, 13, 14, 20))  # Q4_0, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL: Type in product.h
LIBRARY = "libpocketvlm_accelerator.so"  # on macOS, too: CMake calls a module so


@dataclass(frozen=True)
class Accelerator:
    """The kernel that was chosen when the libraries were loaded; None with the reason in `why` where there is none."""

    kernel: str | None
    why: str
    library: ctypes.CDLL | None = None

    def computes(self, types: Iterable[int]) -> bool:
        """Return whether there are kernels for any of these numbers of ggml types."""
        return self.library is not None and not _TYPES.isdisjoint(types)

    def reads_reordered(self, types: Iterable[int]) -> bool:
        """Return whether the kernels read any of these types as the CPU backend reorders them."""
        return self.library is not None and any(map(self.library.pocketvlm_accelerator_reads_reordered, types))

    @contextmanager
    def offered(self) -> Iterator[None]:
        """Let contexts that this thread makes meanwhile use the accelerator."""
        if self.library:
            self.library.pocketvlm_accelerator_offer(True)
        try:
            yield
        finally:
            if self.library:
                self.library.pocketvlm_accelerator_offer(False)


def load(functions: ctypes.CDLL, folder: Path, *, packaged: bool = True) -> Accelerator:
    """Register the accelerator with the ggml that libllama (`functions`) of `folder` is linked to.

    The library of the same build is preferred to the one in this package, which may be used if `packaged`. Raises
    NativeLibraryError where the variable names a kernel that this machine or the library does not have.
    """
    wanted = os.environ.get(VARIABLE) or None
    if wanted == OFF:
        return Accelerator(None, f"{VARIABLE}={OFF}")
    places = (folder, Path(__file__).parent) if packaged else (folder,)
    path = next((place / LIBRARY for place in places if (place / LIBRARY).exists()), None)
    if path is None:
        why = "not built: it needs a C++ compiler with OpenMP when pocketvlm is installed"
        return _unavailable(wanted, why if packaged else f"{folder} has none, and its llama.cpp may be another version")
    try:
        library = ctypes.CDLL(str(path))
        kernel = library.pocketvlm_accelerator_kernel
        register = library.pocketvlm_accelerator_register
        library.pocketvlm_accelerator_offer.argtypes = [ctypes.c_bool]
        library.pocketvlm_accelerator_reads_reordered.restype = ctypes.c_bool
    except OSError as error:
        return _unavailable(wanted, f"cannot be loaded: {error}")
    except AttributeError:
        return _unavailable(wanted, "of another version of pocketvlm: install it again")
    kernel.restype, kernel.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
    register.restype, register.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_char_p]
    name = wanted.encode() if wanted else None
    chosen = kernel(name)
    if chosen is None:
        return _unavailable(wanted, "it has no kernel for this CPU")
    if (problem := register(functions._handle, name)) is not None:
        return _unavailable(wanted, problem.decode())
    return Accelerator(chosen.decode(), f"{VARIABLE} names it" if wanted else "the fastest for this CPU", library)


def _unavailable(wanted: str | None, why: str) -> Accelerator:
    if wanted:
        raise NativeLibraryError(f"{VARIABLE}={wanted}: no such accelerator here ({why}); unset it, or use {OFF}")
    return Accelerator(None, why)
