"""ggml's devices, as the loaded build offers them."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import NativeLibraryError
from pocketvlm.native.ggml import GGML

_CPU_LIBRARY = "libggml-cpu-"
_KINDS = ("cpu", "gpu", "igpu", "accel")  # ggml_backend_dev_type, ggml-backend.h


class _Place(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Backend:
    """A device that ggml can compute on. `name` is ggml's own, such as Vulkan0.

    `kind` is cpu, gpu (has its own memory), igpu (uses the host's memory) or accel (works together with the CPU).
    `free` and `total` are bytes of memory, 0 where unknown.
    """

    name: str
    description: str
    kind: str
    free: int
    total: int


def load(functions: GGML, folder: Path) -> None:
    """Load the backends that are separate libraries in `folder`: the best one for this CPU, and all others that load.

    If no backend is loaded, ggml searches the working directory, which may be a downloaded folder. Raises
    NativeLibraryError where `folder` has no backend for this CPU.
    """
    functions.ggml_backend_reg_count.restype = ctypes.c_size_t
    if functions.ggml_backend_reg_count():
        return  # compiled in
    functions.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    functions.ggml_backend_load_all_from_path(os.fsencode(folder))
    if not any(device.kind == "cpu" for device in list_devices(functions)):
        raise NativeLibraryError(
            f"{folder}: none of its CPU backends runs on this machine; build the libraries again on this machine"
        )


def cpu_code(functions: GGML) -> str | None:
    """Return the generation of CPUs whose library was chosen, such as haswell; None where it is compiled in."""
    if sys.platform == "win32":
        return None
    get, function = functions.ggml_backend_reg_by_name, functions.ggml_backend_reg_get_proc_address
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
    registry = get(b"CPU")
    address = function(registry, b"ggml_backend_get_features") if registry else None
    place = _Place()
    if not address or not ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(place)):
        return None
    name = Path(os.fsdecode(place.file)).stem
    return name.removeprefix(_CPU_LIBRARY) if name.startswith(_CPU_LIBRARY) else None


def list_devices(functions: GGML) -> tuple[Backend, ...]:
    """Return all devices in ggml's order, with the memory that is free now."""
    functions.ggml_backend_dev_count.restype = ctypes.c_size_t
    numbers = range(functions.ggml_backend_dev_count())
    return tuple(_describe(functions, device_address(functions, number)) for number in numbers)


def device_address(functions: GGML, number: int) -> int:
    """Return the address of a device by its place in `list_devices`."""
    get = functions.ggml_backend_dev_get
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    return int(get(number))


def _describe(functions: GGML, address: int) -> Backend:
    pointer = ctypes.c_void_p(address)
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
