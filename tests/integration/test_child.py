"""The engine in a process of its own: the same answers, and what happens when that process dies."""

from __future__ import annotations

import gc
import itertools
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine_seam import (
    STARTED,
    Process,
    engine_of,
    generate,
    has_pending_questions,
    pauses,
    processes,
    prompt_of,
    started_with,
    streams_lock,
)
from integration.asking import asked, disc, settle
from pocketvlm import VLM
from pocketvlm.engine.interface import EngineOptions, Generation, Token
from pocketvlm.engine.process import protocol
from pocketvlm.engine.process.supervisor import SupervisedEngine
from pocketvlm.errors import (
    ContextLengthError,
    EngineClosedError,
    EngineCrashedError,
    GenerationCancelledError,
    ModelFormatError,
    RequestError,
)
from pocketvlm.files.locate import locate
from pocketvlm.native.sampler import Sampling
from tiers import slow_but
from waiting import wait_until

COLOURS = ("red", "green", "blue", "yellow")
ABORT = "import os; os.abort()"
KILLS = int(os.environ.get("POCKETVLM_KILLS", "3"))
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def start(bundle: Path, **options: Any) -> VLM:
    found = locate(bundle, model=None, mmproj=None)
    made = EngineOptions(**{"parallel": 4, "context_size": 4096, "threads": 1, **options})
    engine = SupervisedEngine(
        found.model, found.mmproj, found.onnx, name=found.name, fingerprint=found.fingerprint, options=made
    )
    return VLM(engine)


@pytest.fixture(scope="module")
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with start(iota_bundle) as loaded:
        yield loaded


def endless(vlm: VLM, tokens: int = 3500) -> Generation:
    """One that goes on for `tokens` tokens."""
    ends = 4  # iota has its ends of text and turn among the first four tokens
    prompt = prompt_of(vlm, asked("Describe the picture."))
    return Generation(prompt, Sampling(logit_bias=dict.fromkeys(range(ends), -100.0)), max_tokens=tokens)


def pid_of(vlm: VLM) -> int:
    pid = vlm.statistics().child
    assert pid is not None
    return pid


def left() -> tuple[int, int]:
    """Open files and threads."""
    return open_files(), threading.active_count()


def colour_is_right(vlm: VLM, number: int) -> bool:
    colour = COLOURS[number % 4]
    return vlm.chat(asked("What colour is the circle?", disc(colour, number))).text.lower() == colour


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0


def test_answers_and_scores_are_those_of_this_process(iota_bundle: Path, sample_png: Path) -> None:
    picture = Image.open(sample_png).convert("RGB")
    asks: list[dict[str, Any]] = [
        {"messages": asked("Describe the picture.", picture), "logprobs": True, "top_logprobs": 3},
        {"messages": asked("Describe the picture.", picture), "temperature": 2.0, "seed": 3, "logit_bias": {"9": -5}},
        {"messages": asked("How many shapes are there?", picture)},
    ]

    def answers(vlm: VLM) -> list[Any]:
        found = []
        for ask in asks:
            answer = vlm.chat(**ask)
            found.append((answer.choices, answer.usage, [image.tokens for image in answer.timings.images]))
        return found

    with VLM.load(iota_bundle, exact=True, context_size=4096) as here:
        expected, info = answers(here), here.info
    with start(iota_bundle, exact=True, parallel=1, threads=None) as there:
        assert there.info == info
        assert answers(there) == expected


def test_each_client_is_told_about_its_own_picture(vlm: VLM) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda number: colour_is_right(vlm, number), range(32)))


def test_errors_are_those_of_this_process(vlm: VLM, tmp_path: Path) -> None:
    with pytest.raises(ContextLengthError, match="the context holds 4,096") as caught:
        vlm.chat(asked("word " * 5000))
    assert caught.value.param == "messages"
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelFormatError) as refused:
        SupervisedEngine(
            tmp_path / "broken.gguf", None, None, name="broken", fingerprint="", options=EngineOptions(parallel=2)
        )
    assert refused.value.path == tmp_path / "broken.gguf"


def test_closing_a_stream_frees_its_lane(vlm: VLM) -> None:
    ask = endless(vlm)
    before = vlm.statistics()
    for count in range(40):
        with closing(generate(vlm, ask)) as stream:
            for _ in range(count % 4):
                next(stream)
    settle(vlm)
    assert vlm.statistics().cancelled - before.cancelled >= 30
    assert colour_is_right(vlm, 1)


def test_cancel_reaches_all(vlm: VLM) -> None:
    def read(begun: threading.Event) -> None:
        for event in generate(vlm, endless(vlm)):
            if isinstance(event, Token):
                begun.set()

    begun = [threading.Event() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read, event) for event in begun]
        assert all(event.wait(60) for event in begun)
        vlm.cancel()
        for one in waiting:
            assert isinstance(one.exception(60), GenerationCancelledError)
    settle(vlm)


def test_cancel_stops_no_more_than_generations(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Process.ask

    def cancelling(process: Any, question: Any, channel: Any) -> None:
        ask(process, question, channel)
        if isinstance(question, protocol.TakeSnapshot):
            vlm.cancel()

    monkeypatch.setattr(Process, "ask", cancelling)
    vlm.chat(asked("Hello."), max_tokens=1)
    assert engine_of(vlm).snapshot(prompt_of(vlm, asked("Hello."))).keys


@posix
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT])
@pytest.mark.slow
def test_killed_under_load(vlm: VLM, how: signal.Signals) -> None:
    """All that run or wait are told, the next is right, and nothing is left of the dead."""
    settle(vlm)
    assert colour_is_right(vlm, 0)
    before, restarts = left(), vlm.statistics().restarts
    for round in range(KILLS):
        pid = pid_of(vlm)
        started = threading.Semaphore(0)

        def read(started: threading.Semaphore = started) -> None:
            for event in generate(vlm, endless(vlm)):
                if isinstance(event, Token):
                    started.release()

        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(read) for _ in range(8)]  # four run, four wait
            for _ in range(4):
                started.acquire()
            os.kill(pid, how)
            for one in waiting:
                error = one.exception(60)
                assert isinstance(error, EngineCrashedError), error
                assert how.name in str(error)
                assert error.code == "engine_crashed"
        assert colour_is_right(vlm, round)
        assert pid_of(vlm) != pid
        with pytest.raises(ProcessLookupError):  # reaped: not even a zombie
            os.kill(pid, 0)
    # A process that has ended takes a moment to leave nothing behind; what others left may end, too.
    wait_until(lambda: not any(map(operator.gt, left(), before)))
    assert vlm.statistics().restarts == restarts + KILLS
    assert vlm.statistics().state == "ok"


@posix
def test_an_answer_that_memory_does_not_hold(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(vlm)
    real, faults = protocol.REPLIES.read, [MemoryError()]

    def read(stream: Any) -> Any:
        if faults and has_pending_questions(vlm):
            raise faults.pop()
        return real(stream)

    monkeypatch.setattr(protocol.REPLIES, "read", read)
    with pytest.raises(EngineCrashedError, match="MemoryError"):
        colour_is_right(vlm, 0)
    assert colour_is_right(vlm, 1)


def test_a_stream_that_the_garbage_collector_ends(vlm: VLM) -> None:
    stream = generate(vlm, endless(vlm))
    next(stream)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle

    def collect() -> None:
        with streams_lock(vlm):
            gc.collect()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    collecting.join(60)
    assert not collecting.is_alive()
    settle(vlm)


def test_a_process_that_cannot_answer_ends() -> None:
    code = (
        "import os, threading, time; from queue import SimpleQueue\n"
        "from pocketvlm.engine.process.worker import _write\n"
        "outbox = SimpleQueue(); outbox.put(object())\n"
        "threading.Thread(target=_write, args=(open(os.devnull, 'wb', 0), outbox, os.getppid()), daemon=True).start()\n"
        "time.sleep(20)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "PydanticSerializationError" in ended.stderr


@posix
def test_killed_while_encoding_or_idle(vlm: VLM) -> None:
    for number in range(2):
        with closing(generate(vlm, endless(vlm))) as stream:
            next(stream)
        os.kill(pid_of(vlm), signal.SIGKILL)
        time.sleep(0.05 * number)
        try:
            assert colour_is_right(vlm, number)
        except EngineCrashedError:  # sent before the death was known
            assert colour_is_right(vlm, number)


@posix
def test_a_crash_loop_backs_off_and_says_so(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses(monkeypatch, 0.0, 0.0, 0.0, 0.6)
    with start(iota_bundle) as vlm:
        started_with(ABORT, monkeypatch)
        os.kill(pid_of(vlm), signal.SIGKILL)
        wait_until(lambda: vlm.statistics().state == "failing")
        for _ in range(100):
            try:
                with pytest.raises(EngineCrashedError, match="in a row"):
                    colour_is_right(vlm, 0)
                break
            except AssertionError:
                time.sleep(0.01)
        assert vlm.statistics().child is None
        started_with(STARTED, monkeypatch)
        wait_until(lambda: vlm.statistics().state == "ok")
        assert colour_is_right(vlm, 2)
        assert vlm.statistics().restarts >= 3


@posix
def test_the_pauses_grow(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noted(Process):
        def __init__(self, *given: Any) -> None:
            starts.append(time.monotonic())
            super().__init__(*given)

    starts: list[float] = []
    seconds = (0.0, 0.1, 0.2, 0.4)
    pauses(monkeypatch, *seconds)
    with start(iota_bundle) as vlm:
        started_with(ABORT, monkeypatch)
        processes(monkeypatch, Noted)
        began = time.monotonic()
        os.kill(pid_of(vlm), signal.SIGKILL)
        wait_until(lambda: len(starts) >= 5)
    for crashes, (before, after) in enumerate(itertools.pairwise([began, *starts]), 1):
        assert after - before >= seconds[min(crashes, 3)]


@posix
def test_closing_does_not_wait_for_the_next_start(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses(monkeypatch, 0.0, 60.0)
    vlm = start(iota_bundle)
    os.kill(pid_of(vlm), signal.SIGKILL)
    with ThreadPoolExecutor(1) as pool:
        while vlm.statistics().state == "ok":
            time.sleep(0.001)
        waiting = pool.submit(colour_is_right, vlm, 0)
        time.sleep(0.05)
        began = time.monotonic()
        vlm.close()
        assert time.monotonic() - began < 50  # and not after the pause of 60
        assert isinstance(waiting.exception(60), EngineClosedError)


@posix
def test_a_system_that_gives_no_process(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Process):
        def __init__(self, *_: Any) -> None:
            monkeypatch.undo()
            raise BlockingIOError(11, "Resource temporarily unavailable")

    with start(iota_bundle) as vlm:
        processes(monkeypatch, Refused)
        os.kill(pid_of(vlm), signal.SIGKILL)
        wait_until(lambda: vlm.statistics().restarts >= 1)
        assert colour_is_right(vlm, 2)


def test_closed(iota_bundle: Path) -> None:
    vlm = start(iota_bundle)
    pid = pid_of(vlm)
    stream = generate(vlm, endless(vlm))
    next(stream)
    vlm.close()
    vlm.close()
    with pytest.raises(EngineClosedError):
        list(stream)
    with pytest.raises(EngineClosedError):
        vlm.chat(asked("What is this?"))
    assert vlm.statistics().child is None
    if sys.platform != "win32":
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@posix
@pytest.mark.parametrize("how", slow_but(["kill", "exit", "drop"], "kill", "drop"))
def test_the_child_goes_with_its_parent(iota_bundle: Path, how: str) -> None:
    end = {
        "kill": "import time; time.sleep(60)",
        "exit": "",
        "drop": "del vlm, stream; import time; time.sleep(60)",
    }
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_child_helper import start, endless, generate
from pathlib import Path
vlm = start(Path({str(iota_bundle)!r}))
stream = generate(vlm, endless(vlm))
next(stream)
print(vlm.statistics().child, flush=True)
{end[how]}
""".replace(
        "from test_child_helper import", f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_child import"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            if how == "kill":
                parent.kill()
            wait_until(lambda: not alive(pid))
        finally:
            parent.kill()


def alive(pid: int) -> bool:
    """Not counting a zombie whose parent, some init, has not looked yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@posix
def test_interrupt_stops_the_caller_only(iota_bundle: Path) -> None:
    """Ctrl-C in a terminal goes to the whole group: the child lives on, and the lane is free again."""
    with start(iota_bundle) as vlm:
        pid = pid_of(vlm)
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in range(1000):
                list(generate(vlm, endless(vlm)))
        timer.join()
        assert os.getpgid(pid) != os.getpgid(0)
        assert colour_is_right(vlm, 3)
        settle(vlm)
        assert pid_of(vlm) == pid


# A caller whose terminal stops background processes that write to it, and whose engine does.
LOUD = """
import os, pty, sys, termios
sys.path[:] = sys.argv[2:]
pid, terminal = pty.fork()
if pid:
    try:
        while told := os.read(terminal, 1000):
            os.write(1, told)
    except OSError:  # Linux's end of file
        pass
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
settings = termios.tcgetattr(0)
settings[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, settings)
from engine_seam import started_with
from pocketvlm import VLM
started_with(
    "import os; from pocketvlm.engine.process import worker; serve = worker.serve;"
    "worker.serve = lambda *given: (os.write(2, b'loud '), serve(*given)); worker.main()"
)
with VLM.load(sys.argv[1], supervised=True, context_size=1024) as vlm:
    print(vlm.chat([{"role": "user", "content": "Hello."}], max_tokens=1).usage.completion_tokens)
"""


@posix
def test_terminal_that_stops_who_writes(iota_bundle: Path) -> None:
    command = [sys.executable, "-c", LOUD, str(iota_bundle), *filter(None, sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["loud", "1"]), done.stderr


# Worker code with a fault in it: where the file FAULT names this place, the file goes and native code fails there.
FAULTY = """
import ctypes, os
from pathlib import Path
from llama_cpp import llama_cpp
from pocketvlm.engine.background.encode_task import EncodeTask
from pocketvlm.engine.process import worker
from pocketvlm.native.context import Context

def due(place):
    try:
        if FAULT.read_text() != place:
            return False
        FAULT.unlink()
    except FileNotFoundError:  # another thread was first
        return False
    return True

def faulty(place, real, fail):
    def call(self, *given, **options):
        if due(place):
            fail(self)
        return real(self, *given, **options)
    return call

def assertion(context):  # GGML_ASSERT(seq_id < ...)
    context.truncate(0, 1000)

def abort(_):  # what GGML_ASSERT calls; encoders of both kinds pass here
    llama_cpp._lib.ggml_abort(b"encoder", 1, b"stand-in")

def hang(_):
    ctypes.CDLL(None).pause()

FAULT = Path(os.environ["POCKETVLM_TEST_FAULT"])
Context.decode_embeddings = faulty("prefill", Context.decode_embeddings, assertion)
Context.decode = faulty("hang", faulty("decode", Context.decode, assertion), hang)
worker.InProcessEngine.submit = faulty("submit", worker.InProcessEngine.submit, hang)
EncodeTask._encode = faulty("encode", faulty("hang encoding", EncodeTask._encode, hang), abort)
worker.main()
"""


@pytest.fixture(scope="module")
def fault(iota_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VLM, Path]]:
    file = tmp_path_factory.mktemp("fault") / "fault"
    with pytest.MonkeyPatch.context() as patch:
        started_with(FAULTY, patch)
        patch.setenv("POCKETVLM_TEST_FAULT", str(file))
        with start(iota_bundle, stuck_after=3.0, context_size=16384) as vlm:
            yield vlm, file


FAULTS = {
    "encode": "ended by SIGABRT",
    "prefill": "ended by SIGABRT",
    "decode": "ended by SIGABRT",
    "hang": "one step of its work took more than 3 s",
    "hang encoding": "one step of its work took more than 3 s",
    "submit": "did not answer for 3 s",
    "stopped": "did not answer for 3 s",
}


@posix
@pytest.mark.parametrize("place", slow_but(FAULTS, "encode", "decode", "hang"))
def test_native_code_that_fails_or_never_returns(fault: tuple[VLM, Path], place: str) -> None:
    """By an assertion of its own, or a call without end. All that run are told why; then all lanes work again."""
    (vlm, file), why = fault, FAULTS[place]
    settle(vlm)
    before, pid = vlm.statistics(), pid_of(vlm)
    started = threading.Semaphore(0)

    def read() -> None:
        for event in generate(vlm, endless(vlm, 16000)):
            if isinstance(event, Token):
                started.release()

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(read) for _ in range(3)]
        for _ in running:
            started.acquire()
        if place == "stopped":
            os.kill(pid, signal.SIGSTOP)
        else:
            file.write_text(place)
        running.append(pool.submit(colour_is_right, vlm, 1000))
        try:
            errors = [one.exception(60) for one in running]
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)  # or they would never end
            raise
    for error in errors:
        assert isinstance(error, EngineCrashedError), error
        assert why in str(error)
    assert colour_is_right(vlm, 2)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda number: colour_is_right(vlm, number), range(8)))
    settle(vlm)
    after = vlm.statistics()
    assert after.restarts == before.restarts + 1
    assert after.child != before.child


OFFLINE = """
from pocketvlm.engine.process import worker
def attempt(*given):
    import socket
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    except BaseException as error:  # whatever keeps it from the network is told
        print("the child:", type(error).__name__, file=sys.stderr)
    real(*given)
real, worker.serve = worker.serve, attempt
worker.main()
"""


def test_the_engines_process_is_offline_too(iota_bundle: Path) -> None:
    """Without the tests' own block of the network."""
    script = f"""
import sys
sys.path[:] = {sys.path!r}
from pathlib import Path
from engine_seam import started_with
from pocketvlm import VLM
from pocketvlm.system import offline
offline.enforce()
started_with({OFFLINE!r})
VLM.load(Path({str(iota_bundle)!r}), supervised=True).close()
"""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=bare, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the child: NetworkForbiddenError" in done.stderr


def test_a_crash_while_loading_is_an_error(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started_with(ABORT, monkeypatch)
    threads = threading.active_count()
    with pytest.raises(EngineCrashedError, match="while the model was loaded"):
        start(iota_bundle)
    assert threading.active_count() == threads


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_limit_that_is_none(iota_bundle: Path, seconds: float) -> None:
    with pytest.raises(RequestError, match="stuck_after"):
        start(iota_bundle, stuck_after=seconds)
