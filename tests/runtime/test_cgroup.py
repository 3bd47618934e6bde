"""Limits of control groups, in folders as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.system import cgroup, machine

V1, V2 = "cgroup cgroup rw,{}", "cgroup2 cgroup rw"


class Groups:
    """A folder like /proc/self, and mounted groups."""

    def __init__(self, folder: Path, own: str, *mounts: tuple[str, str]) -> None:
        """`own` is the text of /proc/self/cgroup, `mounts` are (root within the hierarchy, kind) by their number."""
        self.proc, self.points = folder, [folder / f"mount {number}" for number in range(len(mounts))]
        (folder / "cgroup").write_text(own)
        lines = [
            f"{number} 1 0:26 {root} {str(point).replace(' ', chr(92) + '040')} rw,relatime shared:4 - {kind}\n"
            for number, ((root, kind), point) in enumerate(zip(mounts, self.points, strict=True))
        ]
        (folder / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(lines))

    def write(self, mount: int, path: str, **files: str) -> None:
        folder = self.points[mount] / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"a/b": "100000 100000"}, 1.0),
        ({"a/b": "max 100000", "a": "150000 100000"}, 1.5),
        ({"a/b": "400000 100000", "a": "300000 100000", "": "50000 100000"}, 0.5),
        ({"a/b": "max 100000"}, None),
        ({"a": "200000 100000"}, 2.0),  # the own group is gone
        ({"other": "100000 100000"}, None),
    ],
)
def test_cpu_quota_of_version_2(limits: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/a/b\n", ("/", V2))
    for path, text in limits.items():
        groups.write(0, path, cpu__max=f"{text}\n")
    assert cgroup.cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("own", "root", "path"),
    [
        ("3:cpu,cpuacct:/box/inner\n0::/\n", "/", "box/inner"),
        ("3:cpuacct,cpu:/box/inner\n", "/", "box"),
        ("12:memory:/box\n3:cpu,cpuacct:/docker/abc\n", "/docker/abc", ""),  # a container without a namespace
        ("3:cpu,cpuacct:/docker/abc/job\n", "/docker/abc", "job"),
        ("3:cpu,cpuacct:/docker/abc\n", "/", ""),  # what is mounted is not what the path counts from
        ("3:cpu,cpuacct:/../sibling\n", "/", ""),
        ("3:cpu,cpuacct:/elsewhere\n", "/docker/abc", ""),
    ],
)
def test_cpu_quota_of_version_1(own: str, root: str, path: str, tmp_path: Path) -> None:
    groups = Groups(tmp_path, own, ("/", V1.format("memory")), (root, V1.format("cpu,cpuacct")), ("/", V2))
    groups.write(1, "", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert cgroup.cpu_quota(tmp_path) is None
    groups.write(1, path, cpu__cfs_quota_us="75000\n", cpu__cfs_period_us="50000\n")
    assert cgroup.cpu_quota(tmp_path) == 1.5


@pytest.mark.parametrize(("quota", "cpus"), [(None, 4), (0.5, 1), (1.0, 1), (2.5, 2), (16.0, 4)])
def test_threads_within_a_quota(quota: float | None, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.allowed_cpus() == cpus
    assert machine.physical_cores() <= cpus


@pytest.mark.parametrize("limited", ["box/inner", "box", ""])
def test_memory_of_the_group_and_its_parents(limited: str, tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/box/inner\n", ("/", V2))
    groups.write(0, "box/inner", memory__max="max\n", memory__current="9\n", memory__stat="inactive_file 1\n")
    assert cgroup.memory_limits(tmp_path) == []
    usage = {"memory__current": "200000000\n", "memory__stat": "anon 1\ninactive_file 20000000\nactive_file 30000000\n"}
    groups.write(0, limited, memory__max="536870912\n", **usage)
    assert cgroup.memory_limits(tmp_path) == [(536870912, 150000000)]


def test_memory_of_version_1(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "4:memory:/box\n0::/\n", ("/", V1.format("memory")))
    usage = {"memory__usage_in_bytes": "30\n", "memory__stat": "inactive_file 1\ntotal_inactive_file 20\n"}
    groups.write(0, "box", memory__limit_in_bytes="90\n", **usage)
    assert cgroup.memory_limits(tmp_path) == [(90, 10)]


@pytest.mark.parametrize(
    ("own", "kind", "files"),
    [
        ("0::/box\n", V2, {"memory__events": "oom 5\noom_kill 3\noom_group_kill 1\n"}),
        (
            "4:memory:/box\n",
            V1.format("memory"),
            {"memory__oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"},
        ),
    ],
)
def test_processes_that_the_kernel_killed(own: str, kind: str, files: dict[str, str], tmp_path: Path) -> None:
    groups = Groups(tmp_path, own, ("/", kind))
    assert cgroup.oom_kills(tmp_path) == 0
    groups.write(0, "box", **files)
    assert cgroup.oom_kills(tmp_path) == 3


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert cgroup.oom_kills(tmp_path) == 0
    assert cgroup.cpu_quota(tmp_path) is None
    assert cgroup.memory_limits(tmp_path) == []
