"""The machine: cores that this process may use, memory, processor, and the user's folders."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.system.cgroup import cpu_quota, memory_limits

if sys.platform == "win32":
    from pocketvlm.system import windows as native
elif sys.platform == "darwin":
    from pocketvlm.system import macos as native


def allowed_cpus() -> int:
    """Return the number of logical CPUs within the affinity and the quotas of this process's control groups."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    elif sys.platform == "win32":
        with suppress(OSError):
            count = native.allowed_cpus() or count  # 0 where the threads are in several groups of processors
    quota = cpu_quota()
    return max(1, min(count, int(quota))) if quota else max(1, count)


def physical_cores() -> int:
    """Return the number of physical cores among the allowed CPUs: two threads of one core only slow each other down."""
    if sys.platform == "win32" or sys.platform == "darwin":
        with suppress(OSError):
            return max(1, min(allowed_cpus(), native.physical_cores()))
    siblings: set[str] = set()
    if hasattr(os, "sched_getaffinity"):
        for cpu in os.sched_getaffinity(0):
            path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            try:
                siblings.add(path.read_text().strip())
            except OSError:
                return allowed_cpus()
    return min(allowed_cpus(), len(siblings)) if siblings else allowed_cpus()


def idle_seconds() -> float | None:
    """Return how long the allowed CPUs have been idle so far, all together (proc_stat(5)); None where it is unknown."""
    if sys.platform != "linux":
        return None
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    times = [line.split() for line in lines if line.startswith("cpu")]
    return sum(int(idle) + int(waiting) for name, _, _, _, idle, waiting, *_ in times if name in allowed) / ticks


def memory() -> tuple[int, int] | None:
    """Return (total, available) bytes of this machine or this process's control groups; None where they are unknown."""
    if sys.platform == "win32" or sys.platform == "darwin":
        with suppress(OSError):
            return native.memory()
        return None
    if not (values := _memory_values()):
        return None
    total, available = values["MemTotal"], values.get("MemAvailable", values["MemTotal"])
    for limit, used in memory_limits():
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def group_memory() -> tuple[int, int] | None:
    """Return (limit, available) bytes of the control group that has the least, swap included.

    None where no group has a limit below the memory of this machine.
    """
    values = _memory_values()
    groups = [(limit, max(0, limit - used)) for limit, used in memory_limits() if limit < values.get("MemTotal", 0)]
    limit, available = min(groups, key=lambda group: group[1], default=(0, 0))
    return (limit, available + values.get("SwapFree", 0)) if groups else None


def _memory_values() -> dict[str, int]:
    """Return the numbers of proc_meminfo(5) in bytes; none where there is no such file."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.split()[1:]}


@dataclass(frozen=True)
class Memory:
    """Memory of one process in bytes. `anonymous` is not shared with others; `resident` includes mapped files.

    `peak` is the maximum of `resident` so far. On Windows `anonymous` is what the process has committed, and on macOS
    its footprint.
    """

    anonymous: int
    resident: int
    peak: int


def process_memory(pid: int | None = None) -> Memory | None:
    """Return the memory of this process or another (proc_pid_status(5)); None if unknown or ended."""
    if sys.platform == "win32" or sys.platform == "darwin":
        with suppress(OSError):
            return Memory(*native.process_memory(pid))
        return None
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    except OSError:
        return None
    values = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    if not all(name in values for name in ("RssAnon", "VmRSS", "VmHWM")):
        return None
    return Memory(*(1024 * int(values[name][0]) for name in ("RssAnon", "VmRSS", "VmHWM")))


def processor() -> str:
    """Return the processor's name."""
    if sys.platform == "win32" or sys.platform == "darwin":
        with suppress(OSError):
            return native.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def other_libc() -> str:
    """Return the end of a sentence about a library that does not load, where this Python is for musl; else ""."""
    built_for = sysconfig.get_config_var("HOST_GNU_TYPE") or ""
    if "musl" not in built_for:
        return ""
    return "; this Python is for musl, and the libraries are for glibc: use a system with glibc (docs/systems.md)"


def cache_folder() -> Path:
    """Return the folder for files that can be made again: in XDG_CACHE_HOME, or the system's own place.

    Without a home folder it is a path that cannot be written, so nothing is cached.
    """
    return _own_folder("XDG_CACHE_HOME", ".cache", "Caches", "Cache")


def data_folder() -> Path:
    """Return the folder for files worth keeping, such as models: in XDG_DATA_HOME, or the system's own place."""
    return _own_folder("XDG_DATA_HOME", ".local/share", "Application Support", "")


def state_folder() -> Path:
    """Return the folder for what was done last, such as lines that were typed: in XDG_STATE_HOME, or the system's."""
    return _own_folder("XDG_STATE_HOME", ".local/state", "Application Support", "")


def _own_folder(variable: str, linux: str, macos: str, windows: str) -> Path:
    """Return our folder in the places where programs of each system keep theirs, as platformdirs names them."""
    value = os.environ.get(variable)
    if value and Path(value).is_absolute():
        return Path(value) / "pocketvlm"
    try:
        home = Path.home()
    except RuntimeError:  # the user has no entry in the password database, as in many containers
        return Path(os.devnull) / "pocketvlm"
    if sys.platform == "darwin":
        return home / "Library" / macos / "pocketvlm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "pocketvlm" / windows
    return home / linux / "pocketvlm"
