"""ggml's devices, as the loaded build offers them."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import NativeLibraryError

_KINDS = ("cpu", "gpu", "igpu", "accel")  # ggml_backend_dev_type, ggml-backend.h


@dataclass(frozen=True)
class Backend:
    """A device that ggml can compute on. `name` is ggml's own, Vulkan0 for one; memory in bytes, 0 where unknown.

    `kind` is cpu, gpu (memory of its own), igpu (the host's memory) or accel (works beside the CPU).
    """

    name: str
    description: str
    kind: str
    free: int
    total: int


def load(functions: ctypes.CDLL, folder: Path) -> None:
    """Load the backends that are libraries of their own: the best for this CPU, and every other one that loads here.

    ggml looks in the working directory where nobody has loaded any, and that may be a folder that was downloaded.
    """
    functions.ggml_backend_reg_count.restype = ctypes.c_size_t
    if functions.ggml_backend_reg_count():
        return  # compiled in
    functions.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    functions.ggml_backend_load_all_from_path(os.fsencode(folder))
    if not any(backend.kind == "cpu" for backend in present(functions)):
        raise NativeLibraryError(f"{folder}: no CPU backend in it runs on this machine")


def present(functions: ctypes.CDLL) -> tuple[Backend, ...]:
    """All devices, in ggml's order, with their memory as it is now."""
    functions.ggml_backend_dev_count.restype = ctypes.c_size_t
    numbers = range(functions.ggml_backend_dev_count())
    return tuple(_backend(functions, pointer(functions, number)) for number in numbers)


def pointer(functions: ctypes.CDLL, number: int) -> int:
    """The device of that number."""
    get = functions.ggml_backend_dev_get
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    return int(get(number))


def _backend(functions: ctypes.CDLL, device: int) -> Backend:
    pointer = ctypes.c_void_p(device)
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        getattr(functions, name).restype = ctypes.c_char_p
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    functions.ggml_backend_dev_memory(pointer, ctypes.byref(free), ctypes.byref(total))
    kind = functions.ggml_backend_dev_type(pointer)
    return Backend(
        functions.ggml_backend_dev_name(pointer).decode("utf-8", "replace"),
        functions.ggml_backend_dev_description(pointer).decode("utf-8", "replace"),
        _KINDS[kind] if kind < len(_KINDS) else "other",
        free.value,
        total.value,
    )
