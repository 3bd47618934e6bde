"""Run cases in forked children, and watch their time and memory.

The parent has imported everything, so a child begins at once. Threads and native state do not survive a fork: each
child loads its models itself and runs many cases. After one that ends the child, a new child runs the rest.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz import child
from fuzz.cases import Case, Original
from fuzz.kinds import Kind, Work
from fuzz.outcomes import ABORT, HANG, MEMORY, Verdict, of_log

_POLL = 0.1  # seconds
_ASLEEP = 4  # a case may sleep for this many times the limit of processor time
_DUMP = 5.0  # seconds at most that faulthandler gets to write where an interrupted case was
_TICKS = os.sysconf("SC_CLK_TCK")
_START = 120.0  # seconds that a child may compute, or sleep, before its first case


@dataclass(frozen=True)
class Limits:
    """Of one case: seconds of processor time, and bytes of memory of its process and of those that it starts."""

    seconds: float = 20.0
    memory: int = 2 << 30


@dataclass
class _Child:
    pid: int
    pipe: int
    log: Path
    cases: Sequence[Case]
    done: int = 0
    running: bool = False
    began: float = field(default_factory=time.monotonic)
    cpu: float = 0.0  # seconds of the group when the case began
    seen: float = field(default_factory=time.monotonic)
    asleep: float = 0.0  # seconds of the case in which no thread of the group computed or waited for a core
    peak: int = 0
    rest: bytes = b""


@dataclass(frozen=True)
class _Usage:
    cpu: float = 0.0
    memory: int = 0
    awake: bool = False  # a thread computes, or would on a free core


class HarnessError(Exception):
    """The harness failed, not a case."""


class Runner:
    """`kinds` and their `originals` must be complete before the first child is forked."""

    def __init__(
        self,
        kinds: dict[str, Kind],
        originals: dict[str, dict[str, Original]],
        work: Path,
        limits: Limits,
        jobs: int,
    ) -> None:
        self._kinds = kinds
        self._originals = originals
        self._work = work
        self._limits = limits
        self._jobs = jobs
        self._children: dict[int, _Child] = {}
        self._free = list(range(jobs))
        self._slots: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()

    def run(self, batches: Iterable[Sequence[Case]]) -> Iterator[tuple[Case, Verdict] | None]:
        """Yield each case with its verdict, in no order, and None now and then. The cases of a batch have one kind."""
        waiting = iter(batches)
        more = True
        try:
            while more or self._children:
                while more and self._free:
                    batch = next(waiting, None)
                    more = batch is not None
                    if batch:
                        self._fork(batch)
                yield None
                yield from self._step()
        finally:
            for running in [*self._children.values()]:
                self._kill(running)

    def alone(self, case: Case) -> Verdict:
        """Run one case in a child of its own."""
        return next(result[1] for result in self.run([[case]]) if result is not None)

    def _fork(self, cases: Sequence[Case]) -> None:
        slot = self._free.pop()
        folder = self._work / f"job{slot}"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log"
        log.touch()
        reading, writing = os.pipe()
        kind = self._kinds[cases[0].kind]
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            child.run(kind, self._originals[cases[0].kind], cases, Work(self._work, folder), log, writing)
        os.close(writing)
        started = _Child(pid, reading, log, cases)
        self._children[pid] = started
        self._slots[pid] = slot
        self._selector.register(reading, selectors.EVENT_READ, started)

    def _step(self) -> Iterator[tuple[Case, Verdict]]:
        for key, _ in self._selector.select(_POLL):
            yield from self._read(key.data)
        usage = _usage({one.pid for one in self._children.values()})
        for one in [*self._children.values()]:
            if verdict := self._over_limit(one, usage.get(one.pid, _Usage())):
                yield from self._end(one, verdict)

    def _read(self, one: _Child) -> Iterator[tuple[Case, Verdict]]:
        data = os.read(one.pipe, 1 << 16)
        if not data:
            yield from self._end(one)
            return
        *lines, one.rest = (one.rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "error" in message:
                self._kill(one)
                raise HarnessError(message["error"])
            one.running = "begin" in message
            if one.running:
                one.began = one.seen = time.monotonic()
                one.asleep = 0.0
                one.cpu = _usage({one.pid}).get(one.pid, _Usage()).cpu
            else:
                one.done += 1
                one.asleep, one.cpu = 0.0, _usage({one.pid}).get(one.pid, _Usage()).cpu
                yield one.cases[message["end"]], Verdict(**message["verdict"])

    def _over_limit(self, one: _Child, usage: _Usage) -> Verdict | None:
        """Return a verdict for a case that has taken too much, with where it was."""
        now, limits = time.monotonic(), self._limits
        one.asleep += 0.0 if usage.awake else now - one.seen
        one.seen = now
        if not one.running:
            if one.done < len(one.cases) and max(usage.cpu - one.cpu, one.asleep) > _START:
                self._kill(one)
                raise HarnessError(f"{one.cases[0].kind}: not ready after {_START:.0f} s")
            return None
        one.peak = max(one.peak, usage.memory)
        outcome = MEMORY if usage.memory > limits.memory else None
        if usage.cpu - one.cpu > limits.seconds or one.asleep > limits.seconds * _ASLEEP:
            outcome = HANG
        if outcome is None:
            return None
        with suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGUSR1)
        _wait_for_dump(one.log)
        wall = now - one.began
        what = f"{usage.memory >> 20} MB" if outcome == MEMORY else f"{wall:.0f} s"
        logged = of_log(outcome, "", _text(one.log))
        return Verdict(outcome, logged.where, f"{what}\n{logged.detail}", wall, usage.memory)

    def _end(self, one: _Child, verdict: Verdict | None = None) -> Iterator[tuple[Case, Verdict]]:
        """Clean up after a child, and run the rest of its cases in a new one."""
        status = self._kill(one)
        if one.running:
            if verdict is None:
                name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
                verdict = of_log(ABORT, name, _text(one.log))
            yield one.cases[one.done], verdict
            one.done += 1
        elif status != 0 and one.done < len(one.cases):
            raise HarnessError(f"{one.cases[0].kind}: ended with {status} between cases\n{_text(one.log)[-4000:]}")
        if rest := one.cases[one.done :]:
            self._fork(rest)

    def _kill(self, one: _Child) -> int:
        """End a child and all that it has started; return its exit code, or minus its signal."""
        self._selector.unregister(one.pipe)
        os.close(one.pipe)
        for end in (os.killpg, os.kill):  # a child that has just begun has no group yet
            with suppress(ProcessLookupError, PermissionError):
                end(one.pid, signal.SIGKILL)  # it keeps the status of one that has ended by itself
        _, status = os.waitpid(one.pid, 0)
        del self._children[one.pid]
        self._free.append(self._slots.pop(one.pid))
        return os.waitstatus_to_exitcode(status)


def _wait_for_dump(log: Path) -> None:
    """Wait until faulthandler has written to the log, and then until it writes no more."""
    until, size, quiet = time.monotonic() + _DUMP, log.stat().st_size, 0
    written = False
    while time.monotonic() < until and not (written and quiet >= 2):
        time.sleep(_POLL)
        now = log.stat().st_size
        written, quiet = written or now != size, quiet + 1 if now == size else 0
        size = now


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def _usage(groups: set[int]) -> dict[int, _Usage]:
    """Return processor time, anonymous memory and states by process group. Only Linux has these files."""
    usage: dict[int, _Usage] = {}
    for entry in os.scandir("/proc") if Path("/proc/self/stat").exists() else ():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            values = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            group = int(values[2])
            if group in groups:
                before = usage.get(group, _Usage())
                cpu = sum(map(int, values[11:15])) / _TICKS  # its own, and that of children that have ended
                memory = before.memory + anonymous_memory(Path(entry.path, "status"))
                usage[group] = _Usage(before.cpu + cpu, memory, before.awake or _awake(Path(entry.path)))
    return usage


def _awake(process: Path) -> bool:
    """Return whether one of its threads runs, waits for a core (state R), or waits for a disk (state D)."""
    states = (stat.read_text().rpartition(")")[2].split()[0] for stat in process.glob("task/*/stat"))
    return any(state in "RD" for state in states)


def anonymous_memory(status: Path) -> int:
    """Return the bytes that a process holds beside mapped files, from its file in /proc."""
    names = ("RssAnon", "RssShmem")
    return sum(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(names))


def run_in_child(task: Callable[[], Any]) -> Any:
    """Return what a function returns in a forked child, so that no thread of native code comes into this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(writing, "wb") as file:
                pickle.dump(task(), file)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        result = file.read()
    if os.waitpid(pid, 0)[1]:
        raise HarnessError(f"{task} failed")
    return pickle.loads(result)
