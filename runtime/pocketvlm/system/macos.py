"""What macOS says of the machine and of processes, from libSystem. Each function raises OSError where it refuses."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

_VM_INFO, _VM_WORDS = 4, 38  # host_statistics64: HOST_VM_INFO64, and the size of its structure in 32-bit words
_FREE, _INACTIVE = 0, 2  # places in it, in pages
_USAGE_VERSION, _USAGE_WORDS = 4, 37  # proc_pid_rusage: RUSAGE_INFO_V4, in 64-bit words; the first two are an id
_RESIDENT, _FOOTPRINT, _PEAK = 8, 9, 30  # ri_resident_size, ri_phys_footprint, ri_lifetime_max_phys_footprint


@cache
def _system() -> Any:
    return ctypes.CDLL("/usr/lib/libSystem.B.dylib", use_errno=True)


def memory() -> tuple[int, int]:
    """Return the (total, available) bytes of this machine; inactive pages count as available."""
    words, count = (ctypes.c_uint32 * _VM_WORDS)(), ctypes.c_uint32(_VM_WORDS)
    host = ctypes.c_uint32(_system().mach_host_self())
    if _system().host_statistics64(host, _VM_INFO, ctypes.byref(words), ctypes.byref(count)):
        raise OSError("host_statistics64 fails")
    return number("hw.memsize"), (words[_FREE] + words[_INACTIVE]) * number("hw.pagesize")


def process_memory(pid: int | None = None) -> tuple[int, int, int]:
    """Return the bytes that a process alone occupies, those that are resident, and the peak of the former."""
    words = (ctypes.c_uint64 * _USAGE_WORDS)()
    _check(_system().proc_pid_rusage(pid or os.getpid(), _USAGE_VERSION, ctypes.byref(words)))
    return words[_FOOTPRINT], words[_RESIDENT], max(words[_PEAK], words[_RESIDENT])


def physical_cores() -> int:
    """Return the number of physical cores of this machine, efficient ones included."""
    return number("hw.physicalcpu")


def processor() -> str:
    """Return the processor's name, such as Apple M2."""
    return _read("machdep.cpu.brand_string").rstrip(b"\0").decode("utf-8", "replace")


def number(name: str) -> int:
    """Return a value of sysctl(3) that is a number of 4 or 8 bytes."""
    return int.from_bytes(_read(name), "little")


def _read(name: str) -> bytes:
    size = ctypes.c_size_t()
    _check(_system().sysctlbyname(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)))
    value = ctypes.create_string_buffer(size.value)
    _check(_system().sysctlbyname(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0)))
    return value.raw[: size.value]


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
