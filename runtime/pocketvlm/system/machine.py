"""What this machine has: cores that this process may use, memory, CPU features."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path


def allowed_cpus() -> int:
    """Logical CPUs, limited by affinity and by the cgroup's quota (cgroup v2 cpu.max, v1 cpu.cfs_quota_us)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(count, int(quota))) if quota else max(1, count)


def physical_cores() -> int:
    """Physical cores among the allowed CPUs: two threads of one core only get in each other's way here."""
    siblings: set[str] = set()
    if hasattr(os, "sched_getaffinity"):
        for cpu in os.sched_getaffinity(0):
            path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            try:
                siblings.add(path.read_text().strip())
            except OSError:
                return allowed_cpus()
    return min(allowed_cpus(), len(siblings)) if siblings else allowed_cpus()


def memory() -> tuple[int, int] | None:
    """(total, available) bytes of this machine, or of this process's cgroup; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.split()[1:]}
    total, available = values["MemTotal"], values.get("MemAvailable", values["MemTotal"])
    for limit, used in _cgroup_memory():
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: `anonymous` are its own alone, `resident` also has pages of files that it maps.

    `peak` is the most that `resident` ever was.
    """

    anonymous: int
    resident: int
    peak: int


def process_memory(pid: int | None = None) -> Memory | None:
    """Of this process, or of another; None where the system does not say (proc_pid_status(5)), or it is gone."""
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    except OSError:
        return None
    values = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    if not all(name in values for name in ("RssAnon", "VmRSS", "VmHWM")):
        return None
    return Memory(*(1024 * int(values[name][0]) for name in ("RssAnon", "VmRSS", "VmHWM")))


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again: XDG_CACHE_HOME, or the system's own place.

    Where nobody knows a home, a place that cannot be written: what would be remembered is forgotten.
    """
    return _own_folder("XDG_CACHE_HOME", ".cache", "Caches")


def data_folder() -> Path:
    """Where this user's programs keep what is worth keeping, as models: XDG_DATA_HOME, or the system's own place."""
    return _own_folder("XDG_DATA_HOME", ".local/share", "Application Support")


def _own_folder(variable: str, linux: str, macos: str) -> Path:
    given = os.environ.get(variable)
    if given and Path(given).is_absolute():
        base = Path(given)
    else:
        try:
            home = Path.home()
        except RuntimeError:  # a user without an entry, as in many containers
            return Path(os.devnull) / "pocketvlm"
        if sys.platform == "darwin":
            base = home / "Library" / macos
        elif sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
        else:
            base = home / linux
    return base / "pocketvlm"


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """(limit, used) of the cgroups that this process is in, v2 and v1; file pages that can be dropped are not used."""
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        if controllers == "":
            base, names, cached = root, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            cached = "total_inactive_file"
        else:
            continue
        for folder in {base, base / path.strip("/")}:  # a container sees its own group as the root
            try:
                limit, used = (int((folder / name).read_text()) for name in names)
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group, or its limit is "max"
                continue
            found.append((limit, max(0, used - int(stat.get(cached, 0)))))
    return found


def _cgroup_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 else None
