"""What Windows says of the machine and of processes, and what it locks and limits, from kernel32.

The structures can be looked at on every system; the functions are for Windows alone. Each raises OSError where the
system refuses.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_DWORD, _SIZE, _HANDLE, _LARGE = ctypes.c_uint32, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64

NO_CONTROL_C: int = 0x200  # CREATE_NEW_PROCESS_GROUP of CreateProcess: Ctrl-C does not reach the process
TIME_IS_OVER = 1816  # ERROR_NOT_ENOUGH_QUOTA, with which a job ends a process
ENDED_BY_CONTROL_C = 0xC000013A  # STATUS_CONTROL_C_EXIT
# Exit codes of processes that did not end themselves (NTSTATUS).
ENDINGS = {
    0xC0000005: "an access violation",
    0xC0000017: "want of memory",
    0xC000001D: "an illegal instruction",
    0xC0000094: "a division by zero",
    0xC00000FD: "a stack overflow",
    ENDED_BY_CONTROL_C: "Ctrl-C",
    0xC0000409: "an abort",
}

_LOCK_AT_ONCE, _LOCK_ALONE = 1, 2  # LockFileEx: LOCKFILE_FAIL_IMMEDIATELY, LOCKFILE_EXCLUSIVE_LOCK
_LOCKED_BYTE = 0x7FFFFFFF_FFFFFFFE  # locks forbid others to read what they cover, so it is a byte that no file has
_IS_LOCKED = 33  # ERROR_LOCK_VIOLATION
_READ_MEMORY = 0x410  # OpenProcess: PROCESS_QUERY_INFORMATION | PROCESS_VM_READ
_EXTENDED_LIMITS = 9  # JobObjectExtendedLimitInformation
_LIMIT_TIME, _LIMIT_MEMORY = 0x2, 0x100  # JOB_OBJECT_LIMIT_PROCESS_TIME, JOB_OBJECT_LIMIT_PROCESS_MEMORY
_TICKS = 10_000_000  # of FILETIME, in a second
_ESCAPES = 0x4  # ENABLE_VIRTUAL_TERMINAL_PROCESSING of a console
_CORE = 0  # RelationProcessorCore


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("length", _DWORD),
        ("load", _DWORD),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    )


class MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS_EX."""

    _fields_ = (
        ("size", _DWORD),
        ("page_faults", _DWORD),
        ("peak_working_set", _SIZE),
        ("working_set", _SIZE),
        ("quota_peak_paged", _SIZE),
        ("quota_paged", _SIZE),
        ("quota_peak_non_paged", _SIZE),
        ("quota_non_paged", _SIZE),
        ("page_file", _SIZE),
        ("peak_page_file", _SIZE),
        ("private", _SIZE),
    )


class Overlapped(ctypes.Structure):
    """OVERLAPPED, of which LockFileEx reads the place."""

    _fields_ = (
        ("internal", ctypes.c_void_p),
        ("internal_high", ctypes.c_void_p),
        ("offset", _DWORD),
        ("offset_high", _DWORD),
        ("event", _HANDLE),
    )


class JobLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION, with its JOBOBJECT_BASIC_LIMIT_INFORMATION and IO_COUNTERS."""

    _fields_ = (
        ("process_time", _LARGE),
        ("job_time", _LARGE),
        ("flags", _DWORD),
        ("minimum_working_set", _SIZE),
        ("maximum_working_set", _SIZE),
        ("active_processes", _DWORD),
        ("affinity", _SIZE),
        ("priority_class", _DWORD),
        ("scheduling_class", _DWORD),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory", _SIZE),
        ("job_memory", _SIZE),
        ("peak_process_memory", _SIZE),
        ("peak_job_memory", _SIZE),
    )


def core_count(records: bytes) -> int:
    """Count the cores in SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX records, each of which begins with kind and size."""
    count = place = 0
    while place + 8 <= len(records):
        kind, size = (int.from_bytes(records[at : at + 4], "little") for at in (place, place + 4))
        if size < 8:
            break
        count += kind == _CORE
        place += size
    return count


if sys.platform == "win32":
    import msvcrt
    import winreg

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel32.GetCurrentProcess.restype = _HANDLE
    _kernel32.OpenProcess.restype = _HANDLE
    _kernel32.CreateJobObjectW.restype = _HANDLE
    _job: JobLimits | None = None
    _job_handle: Any = None

    def memory() -> tuple[int, int]:
        """Return the (total, available) bytes of this machine."""
        status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
        _check(_kernel32.GlobalMemoryStatusEx(ctypes.byref(status)))
        return int(status.total), int(status.available)

    def process_memory(pid: int | None = None) -> tuple[int, int, int]:
        """Return the private bytes of a process, its working set and the peak of that."""
        if pid is None:
            handle = _HANDLE(_kernel32.GetCurrentProcess())
        else:
            handle = _HANDLE(_check(_kernel32.OpenProcess(_DWORD(_READ_MEMORY), False, _DWORD(pid))))
        try:
            counters = MemoryCounters(size=ctypes.sizeof(MemoryCounters))
            size = _DWORD(ctypes.sizeof(counters))
            _check(_kernel32.K32GetProcessMemoryInfo(handle, ctypes.byref(counters), size))
        finally:
            if pid is not None:
                _kernel32.CloseHandle(handle)
        return int(counters.private), int(counters.working_set), int(counters.peak_working_set)

    def allowed_cpus() -> int:
        """Return how many logical CPUs of its group this process may use."""
        own, system = _SIZE(), _SIZE()
        process = _HANDLE(_kernel32.GetCurrentProcess())
        _check(_kernel32.GetProcessAffinityMask(process, ctypes.byref(own), ctypes.byref(system)))
        return bin(own.value).count("1")

    def physical_cores() -> int:
        """Return the number of physical cores of this machine."""
        size = _DWORD()
        _kernel32.GetLogicalProcessorInformationEx(_CORE, None, ctypes.byref(size))
        records = ctypes.create_string_buffer(size.value)
        _check(_kernel32.GetLogicalProcessorInformationEx(_CORE, records, ctypes.byref(size)))
        return core_count(records.raw)

    def processor() -> str:
        """Return the processor's name, as the registry has it."""
        place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()

    def lock(descriptor: int, *, shared: bool) -> bool:
        """Lock an open file until it is closed, and return False where another handle's lock forbids it."""
        place = Overlapped(offset=_LOCKED_BYTE & 0xFFFFFFFF, offset_high=_LOCKED_BYTE >> 32)
        flags = _LOCK_AT_ONCE | (0 if shared else _LOCK_ALONE)
        handle = _HANDLE(msvcrt.get_osfhandle(descriptor))
        if _kernel32.LockFileEx(handle, _DWORD(flags), _DWORD(0), _DWORD(1), _DWORD(0), ctypes.byref(place)):
            return True
        if (number := ctypes.get_last_error()) == _IS_LOCKED:
            return False
        raise ctypes.WinError(number)

    def limit_own_memory(size: int) -> None:
        """Make this process fail to commit more than `size` bytes."""
        limits = _limits()
        limits.flags |= _LIMIT_MEMORY
        limits.process_memory = size
        _set_limits(limits)

    def limit_own_time(seconds: float) -> None:
        """End this process after `seconds` more of a processor in user mode; 0 for no limit."""
        limits = _limits()
        limits.flags = limits.flags | _LIMIT_TIME if seconds else limits.flags & ~_LIMIT_TIME
        limits.process_time = int((_user_time() + seconds) * _TICKS)
        _set_limits(limits)

    def enable_escapes(descriptor: int) -> bool:
        """Let a console understand escape sequences, and return whether it does: not before Windows 10."""
        mode, handle = _DWORD(), _HANDLE(msvcrt.get_osfhandle(descriptor))
        if not _kernel32.GetConsoleMode(handle, ctypes.byref(mode)):
            return False
        return bool(mode.value & _ESCAPES or _kernel32.SetConsoleMode(handle, _DWORD(mode.value | _ESCAPES)))

    def _limits() -> JobLimits:
        """Return the limits of this process's own job, which may be within another."""
        global _job, _job_handle
        if _job is None:
            handle = _HANDLE(_check(_kernel32.CreateJobObjectW(None, None)))
            _check(_kernel32.AssignProcessToJobObject(handle, _HANDLE(_kernel32.GetCurrentProcess())))
            _job, _job_handle = JobLimits(), handle
        return _job

    def _set_limits(limits: JobLimits) -> None:
        size = _DWORD(ctypes.sizeof(limits))
        _check(_kernel32.SetInformationJobObject(_job_handle, _EXTENDED_LIMITS, ctypes.byref(limits), size))

    def _user_time() -> float:
        times = [ctypes.c_uint64() for _ in range(4)]  # created, ended, in the kernel, in user mode
        process = _HANDLE(_kernel32.GetCurrentProcess())
        _check(_kernel32.GetProcessTimes(process, *map(ctypes.byref, times)))
        return times[3].value / _TICKS

    def _check(result: Any) -> Any:
        if not result:
            raise ctypes.WinError(ctypes.get_last_error())
        return result
