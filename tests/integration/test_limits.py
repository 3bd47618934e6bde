"""Where the system gives too little: an answer, or one line that names the limit. Never a traceback or an abort."""

from __future__ import annotations

import errno
import os
import re
import runpy
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from integration.asking import asked
from pocketvlm import VLM, SystemLimitError
from pocketvlm.engine.interface import EngineOptions
from pocketvlm.engine.loading import loader
from pocketvlm.engine.loading.device_placement import DevicePlacement
from pocketvlm.engine.process import protocol, worker
from pocketvlm.engine.process.protocol import ErrorMessage
from pocketvlm.files.footprint import weights_of
from pocketvlm.native import memory_estimate
from pocketvlm.system import limits, machine
from pocketvlm.vision.compatibility import check_files
from tiers import slow_but

ROOT = Path(__file__).parent.parent.parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux does it")
posix = pytest.mark.skipif(sys.platform == "win32", reason="ulimit")
POINTS = {
    ("addresses", "chat", 100): ("refused",),
    ("addresses", "chat", 250): ("refused",),
    ("addresses", "chat", 512): ("answer",),
    ("addresses", "serve", 250): ("refused",),
    ("addresses", "serve", 640): ("answer",),
    ("files", "chat", 8): ("answer",),
    ("files", "serve", 10): ("refused",),
    ("files", "serve", 32): ("answer",),
    ("memory", "chat", 60): ("killed", "refused"),
    ("memory", "chat", 128): ("answer",),
    ("memory", "serve", 100): ("refused",),
    ("threads", "chat", 3): ("refused",),
    ("threads", "chat", 32): ("answer",),
    ("threads", "serve", 8): ("refused",),
}


@linux
@pytest.mark.parametrize(
    "point", slow_but(POINTS, ("addresses", "chat", 100), ("addresses", "chat", 250)), ids=lambda point: f"{point}"
)
def test_an_answer_or_one_line(point: tuple[str, str, int]) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "limits.py"))
    if reason := script["unavailable"](point[0]):
        pytest.skip(reason)
    assert script["run"](*point) in POINTS[point]


@posix
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (ImportError("lib.so: failed to map segment from shared object"), "out of memory"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("can't start new thread"), "no more threads"),
    ],
)
def test_what_a_shortage_is(error: Exception, words: str) -> None:
    try:
        raise KeyError from error
    except KeyError as outer:
        assert words in (limits.shortage(outer) or "")
    assert ErrorMessage.of(error).exception().args == SystemLimitError(limits.shortage(error)).args
    try:
        raise KeyError from None
    except KeyError as outer:
        outer.__context__ = error
        assert limits.shortage(outer) is None
    assert limits.shortage(ImportError("no module named x")) is None


@posix
def test_no_process_but_not_each_resource_that_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    home = subprocess if hasattr(subprocess, "_fork_exec") else subprocess._posixsubprocess  # type: ignore[attr-defined]
    monkeypatch.setattr(home, "_fork_exec" if home is subprocess else "fork_exec", refuse)
    with pytest.raises(BlockingIOError) as raised:
        subprocess.Popen([sys.executable], cwd=os.sep)
    assert "no more threads" in (limits.shortage(raised.value) or "")
    with pytest.raises(BlockingIOError) as raised:
        refuse()  # as a lock, a pipe or a socket does
    assert limits.shortage(raised.value) is None


def test_fewer_threads(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As many as the system starts, down to one; then the model is refused."""
    started: list[int] = []

    class Few(threading.Thread):
        def start(self) -> None:
            if sum(thread.is_alive() for thread in threads) >= allowed:
                raise RuntimeError("can't start new thread")
            super().start()
            threads.append(self)

    allowed, threads = 13, list[threading.Thread]()
    monkeypatch.setattr(limits.threading, "Thread", Few)
    assert limits.startable_threads(6) == 6
    assert limits.startable_threads(99) == allowed
    monkeypatch.undo()
    monkeypatch.setattr(limits, "startable_threads", lambda most: started.append(most) or min(most, allowed))
    with VLM.load(iota_bundle, threads=4) as vlm:
        assert vlm.chat(asked("Hello."), max_tokens=1).usage.completion_tokens == 1
    assert started == [16]
    assert "2 instead of 4" in caplog.text
    allowed = 9
    with pytest.raises(SystemLimitError, match="no more threads"):
        VLM.load(iota_bundle)


def test_a_request_that_gets_no_thread_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    outbox: SimpleQueue[Any] = SimpleQueue()
    handler = worker._Handler(None, outbox)  # type: ignore[arg-type]  # the request does not reach the engine
    monkeypatch.setattr(threading.Thread, "start", refuse)
    handler.handle(protocol.TakeSnapshot(7, ()))
    reply = outbox.get_nowait()
    assert isinstance(reply, protocol.Failed) and reply.id == 7
    assert isinstance(reply.error.exception(), SystemLimitError)
    monkeypatch.undo()
    handler.handle(protocol.TakeSnapshot(8, ()))
    assert outbox.get(timeout=60).id == 8
    handler._long.shutdown()
    assert outbox.empty()  # the first one does not run later


def test_a_request_that_fails_at_once_fails_alone() -> None:
    outbox: SimpleQueue[Any] = SimpleQueue()
    handler = worker._Handler(None, outbox)  # type: ignore[arg-type]  # an AttributeError stands in for any other
    handler.handle(protocol.GetStatistics(7))
    reply = outbox.get_nowait()
    assert isinstance(reply, protocol.Failed) and reply.id == 7


def test_a_control_group_that_is_too_small(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 20 << 20
    monkeypatch.setattr(limits, "group_memory", lambda: (100 << 20, free))
    with pytest.raises(
        SystemLimitError, match=r"^model.* needs \d\d MB of memory, but 20 of the 100 MB of its control"
    ):
        VLM.load(iota_bundle)
    with pytest.raises(SystemLimitError, match=r"^the engine's process needs 56 MB of memory"):
        VLM.load(iota_bundle, supervised=True)
    free = 100 << 20
    VLM.load(iota_bundle).close()


def test_what_a_device_takes_needs_no_memory_of_the_host(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = check_files(iota_bundle / "model-Q4_K_M.gguf", iota_bundle / "mmproj-q8_0.gguf", None)
    options = EngineOptions(context_size=8192)
    weights = weights_of(checked.model)
    count, cell = len(weights.layers), 8192 * weights.cell[-1]
    placed = [DevicePlacement(0, layers, False, "") for layers in range(count + 2)]
    sizes = [loader.host_memory(checked, options, placement) for placement in placed]
    assert sizes[0] == sizes[1] == loader.host_memory(checked, options)
    assert [one - other for one, other in pairwise(sizes[1:])] == [cell] * count
    monkeypatch.setattr(memory_estimate, "reordered", lambda _: True)
    copied = [loader._reordered_bytes(checked.model, placement) for placement in placed]
    assert copied[0] >= copied[1] > copied[-1] == 0
    monkeypatch.setattr(limits, "group_memory", lambda: (100 << 20, sizes[0] + (24 << 20)))
    with pytest.raises(SystemLimitError, match=r"^model.* needs"):
        VLM.load(iota_bundle, context_size=8192, vision="gguf", device="cpu")
    monkeypatch.setattr(memory_estimate, "reordered", lambda _: False)
    VLM.load(iota_bundle, context_size=8192, vision="gguf", device="cpu").close()


def test_only_limits_below_the_memory_of_the_machine_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_memory_values", lambda: {"MemTotal": 1000, "SwapFree": 5})
    monkeypatch.setattr(machine, "memory_limits", lambda: [(9223372036854771712, 400), (1 << 40, 3)])
    assert machine.group_memory() is None
    monkeypatch.setattr(machine, "memory_limits", lambda: [(500, 400), (900, 850), (1 << 40, 3)])
    assert machine.group_memory() == (900, 55)


@linux
def test_the_kernel_ends_the_engine_first(iota_bundle: Path) -> None:
    with VLM.load(iota_bundle, supervised=True, context_size=512) as vlm:
        scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (os.getpid(), child_of(vlm))]
    assert scores[1] == min(1000, scores[0] + 500)


# Fills the memory of its group until the kernel has ended a process.
HOG = """
from pocketvlm.system.cgroup import oom_kills
blocks = []
while not oom_kills():
    blocks.append(b"x" * (1 << 20))
"""


@linux
@pytest.mark.slow
def test_a_server_outlives_its_engine_in_a_full_group(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "limits.py"))
    if reason := script["unavailable"]("memory"):
        pytest.skip(reason)
    with script["limited"]("memory", 220) as limit:  # half of it and the engine are more than what the hog takes
        command = ["serve", "--port", "0", "--log-level", "warning"]
        with script["started"](command, limit, dict(os.environ), tmp_path) as server:
            until = time.monotonic() + 60
            while not (port := re.search(r"127\.0\.0\.1:(\d+)/v1", (tmp_path / "out").read_text())):
                assert server.poll() is None and time.monotonic() < until
                time.sleep(0.05)
            subprocess.run([sys.executable, "-c", HOG], preexec_fn=limit, timeout=60, check=True)
            assert script["_ask"](int(port[1])) == "answer"
            assert server.poll() is None
    lines = (tmp_path / "err").read_text().splitlines()
    assert len(lines) == 1
    assert "was ended by SIGKILL because the memory of its control group was full" in lines[0]


def child_of(vlm: VLM) -> Any:
    return vlm.statistics().child


@linux
def test_the_process_that_watches_for_a_kill() -> None:
    """There is one, it ignores what ends a whole group of processes, and nobody minds if it has ended before."""
    script = """
import os, signal, sys
from pathlib import Path
from pocketvlm.cli import oom_watch
oom_watch.group_memory = lambda: (1 << 30, 1 << 29)
oom_watch.watch_for_oom_kill()
oom_watch.watch_for_oom_kill()
(child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
ignored = 0
while not ignored & 1 << signal.SIGTERM - 1:
    ignored = int(Path(f"/proc/{child}/status").read_text().partition("SigIgn:")[2].split()[0], 16)
os.kill(int(child), signal.SIGKILL)
os.waitpid(int(child), 0)
print("ended", file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "ended\n")
