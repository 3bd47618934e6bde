"""Limits of this process's control groups, version 1 and 2: processor time and memory (cgroups(7)).

A limit of a group holds for all groups below it, so the least one of the own group and its parents counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")
_CPU = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")  # version 2, and two files of version 1
# Limit, use, and what of the use are file pages, in memory.stat: version 2 and 1. The kernel drops all of these, active
# ones last, before it ends a process.
_MEMORY = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
_EVENTS = ("memory.events", "memory.oom_control")  # have a line "oom_kill 3"


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Return how many CPUs' time this process may use; None where there is no limit."""
    quotas = [quota for folder in _folders("cpu", proc) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def memory_limits(proc: Path = _PROC) -> list[tuple[int, int]]:
    """Return (limit, used) bytes of each group with a limit. File pages that can be dropped do not count as used."""
    limits = []
    for folder in _folders("memory", proc):
        for limit_name, used_name, cached in _MEMORY:
            limit, used = _text(folder / limit_name), _text(folder / used_name)
            if limit.isdecimal() and used.isdecimal():  # not "max", and of this version
                stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
                dropped = sum(int(stat.get(name, 0)) for name in cached)
                limits.append((int(limit), max(0, int(used) - dropped)))
    return limits


def oom_kills(proc: Path = _PROC) -> int:
    """Return how many processes of this process's group the kernel has killed because memory was full."""
    own = next(_folders("memory", proc), None)
    lines = [line.split() for name in _EVENTS for line in _text(own / name).splitlines()] if own else []
    return next((int(words[1]) for words in lines if words[:1] == ["oom_kill"]), 0)


def _quota(folder: Path) -> float | None:
    try:
        quota, period = map(int, " ".join(_text(folder / name) for name in _CPU).split())
    except ValueError:  # "max", or no file
        return None
    return quota / period if quota > 0 and period > 0 else None  # -1: no limit


def _text(path: Path) -> str:
    """Return the content of a small file, "" where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _folders(controller: str, proc: Path) -> Iterator[Path]:
    """Yield the folders of this process's group for a controller and of its parents, the innermost first."""
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in mounts:
        # 30 23 0:26 ROOT POINT rw,relatime shared:4 - TYPE cgroup rw,cpu,cpuacct (proc_pid_mountinfo(5))
        before, _, after = line.partition(" - ")
        fields, (kind, *options) = before.split(), after.split() or [""]
        if len(fields) < 5 or kind not in ("cgroup", "cgroup2"):
            continue
        root, point = map(_unescaped, fields[3:5])
        if kind == "cgroup" and controller not in options[-1].split(","):
            continue
        for _, controllers, path in (group for group in groups if len(group) == 3):
            if controllers == "" if kind == "cgroup2" else controller in controllers.split(","):
                # Without a namespace, a container's path is that of the host, and ROOT the part that is not mounted.
                inside = PurePosixPath(path).is_relative_to(root) and ".." not in PurePosixPath(path).parts
                own = Path(point) / (PurePosixPath(path).relative_to(root) if inside else "")
                yield own
                yield from (parent for parent in own.parents if parent.is_relative_to(point))


def _unescaped(text: str) -> str:
    """Return a path of mountinfo with its octal escapes read."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
