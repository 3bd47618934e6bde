"""Answers while other programs compute: with fixed numbers of threads, and with the number that the engine chooses.

`--what prefill` and `--what encoder` measure a new text and a new picture, for which the number is always fixed.

The models, each in its own process, take turns while no, one and two busy loops run. Then the loops end while an answer
runs: how long until it has all threads again. SmolVLM-256M's shapes with random weights, or BUNDLE.

What else runs on the machine is seen in /proc/stat (programs of lower priority are not counted). Where it takes more
than a twentieth of a core, the measurement is repeated, for some minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from checkpoint import random_weights
from peers import children

from pocketvlm import VLM
from pocketvlm.bench.measure import fresh, photo
from pocketvlm.engine.scheduling import step
from pocketvlm.engine.scheduling.thread_count import ThreadCountPolicy
from pocketvlm.system.machine import physical_cores, processor

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Write a long story about a small dog that finds a map."}]
SETTLE = 0.5  # seconds, for loops to begin
BEFORE, AFTER = 3.0, 5.0  # seconds of an answer before its loops end, and after
WINDOW = 8  # steps
PREFILL = 450  # numbers in a new text
ADAPTIVE = "adaptive"
OTHERS = 0.05  # of a core, that other programs may take
_TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", type=Path, nargs="?")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--what", default="decode", choices=("decode", "prefill", "encoder"))
    options.add_argument("--tokens", type=int, default=192, help="tokens of an answer")
    options.add_argument("--loops", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--patience", type=float, default=120, help="seconds for repeated measurements, in all")
    options.add_argument("--returns", type=int, default=3, help="how often the loops end while an answer runs")
    arguments = options.parse_args()
    count = physical_cores()
    with ExitStack() as stack:
        path = arguments.bundle or stack.enter_context(random_weights()).path
        models = {}
        if arguments.what == "decode":
            models[ADAPTIVE] = stack.enter_context(model(path, count, adapts=True))
        for threads in range(1, count + 1):
            models[f"fixed {threads}"] = stack.enter_context(model(path, threads, adapts=False))
        speeds = measure(models, arguments)
        unit = "tiles/s" if arguments.what == "encoder" else "tokens/s"
        print(f"{processor()}, {count} threads, {arguments.rounds} rounds, {arguments.what}, {unit}\n")
        show(speeds, list(models), arguments.loops)
        for _ in range(arguments.returns if ADAPTIVE in models else 0):
            for loops in (number for number in arguments.loops if number):
                seconds = returns(models[ADAPTIVE], loops, count)
                print(f"on all threads {seconds:.2f} s after {loops} ended")


class Model:
    """A model in another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ask(self, what: str, tokens: int) -> tuple[float, float]:
        """Return tokens or tiles per second, and the mean number of threads of an answer's steps."""
        self._connection.send((what, tokens, 0.0))
        answer: tuple[float, float] = self._connection.recv()
        return answer

    def begin(self, seconds: float) -> None:
        self._connection.send(("stream", 0, seconds))

    def times(self) -> list[tuple[float, int]]:
        """Return the times of all tokens since `begin`, and the sum of all steps' threads then."""
        times: list[tuple[float, int]] = self._connection.recv()
        return times


@contextmanager
def model(path: Path, threads: int, *, adapts: bool) -> Iterator[Model]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=run, args=(there, path, threads, adapts), daemon=True)
    process.start()
    try:
        loaded = Model(here)
        for what in ("encoder", "prefill", "decode"):
            loaded.ask(what, 16)
        yield loaded
    finally:
        process.kill()
        process.join()


def run(connection: Connection, path: Path, threads: int, adapts: bool) -> None:
    if not adapts:
        step.ThreadCountPolicy = _FixedCount  # type: ignore[misc]  # no option turns it off
    vlm = VLM.load(path, threads=threads, speculate="off", context_size=2048)
    while True:
        what, tokens, seconds = connection.recv()
        if what != "stream":
            connection.send(once(vlm, what, tokens))
            continue
        times: list[tuple[float, int]] = []
        for _ in vlm.stream(QUESTION, max_tokens=1900, ignore_eos=True):
            times.append((time.monotonic(), vlm.statistics().threads_of_steps))
            if times[-1][0] > times[0][0] + seconds:
                break
        connection.send(times)


def once(vlm: VLM, what: str, tokens: int) -> tuple[float, float]:
    if what == "encoder":
        part = {"type": "image", "image": fresh(photo(512, 512)), "detail": "low"}
        [image] = vlm.chat([{"role": "user", "content": [part]}], max_tokens=1).timings.images
        return 1000 * image.tiles / image.encode_ms, 0.0
    if what == "prefill":
        numbers = " ".join(str(Random().randrange(10)) for _ in range(PREFILL))
        timings = vlm.chat([{"role": "user", "content": numbers}], max_tokens=1).timings
        return timings.prefill_tokens_per_second or 0.0, 0.0
    before = vlm.statistics()
    timings = vlm.chat(QUESTION, max_tokens=tokens, ignore_eos=True).timings
    after = vlm.statistics()
    mean = (after.threads_of_steps - before.threads_of_steps) / (after.steps - before.steps)
    return timings.decode_tokens_per_second or 0.0, mean


class _FixedCount(ThreadCountPolicy):
    def next_count(self, _: float) -> int:
        return self.count


@contextmanager
def busy(loops: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        time.sleep(SETTLE)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(models: dict[str, Model], arguments: argparse.Namespace) -> dict[tuple[int, str], list[float]]:
    speeds = defaultdict(list)
    for _ in range(arguments.rounds):
        for loops in arguments.loops:
            for name, asked in models.items():
                while True:
                    with busy(loops):
                        began, load = time.monotonic(), others()
                        speed, threads = asked.ask(arguments.what, arguments.tokens)
                        seconds = time.monotonic() - began
                        load = (others() - load) / seconds
                    line = f"  {loops} loops, {name}: {speed:.1f}, {threads:.2f} threads; others {load:.2f}"
                    print(line, file=sys.stderr, flush=True)
                    if load <= OTHERS or arguments.patience <= 0:
                        break
                    arguments.patience -= seconds
                speeds[loops, name].append(speed)
    return speeds


def others() -> float:
    """Return the seconds of processor time that programs other than ours and our children have taken so far."""
    user, _, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + system - sum(map(own_ticks, [os.getpid(), *children(os.getpid())]))) / _TICK


def own_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def show(speeds: dict[tuple[int, str], list[float]], names: list[str], loops: list[int]) -> None:
    print(f"| busy loops | {' | '.join(names)} | adaptive by the best fixed |")
    print(f"|---|{'---|' * len(names)}---|")
    for number in loops:
        cells = [
            f"{median(speeds[number, name]):.1f} ({min(speeds[number, name]):.1f} to {max(speeds[number, name]):.1f})"
            for name in names
        ]
        best = max(median(speeds[number, name]) for name in names if name != ADAPTIVE)
        ratio = f"{median(speeds[number, ADAPTIVE]) / best:.2f}" if ADAPTIVE in names else ""
        print(f"| {number} | {' | '.join(cells)} | {ratio} |")


def returns(asked: Model, loops: int, most: int) -> float:
    """Return the seconds from the end of the loops until `WINDOW` steps in a row have had all threads."""
    with busy(loops) as processes:
        asked.begin(BEFORE + AFTER)
        time.sleep(BEFORE)
        for process in processes:
            process.kill()
        ended = time.monotonic()
        steps = [(at, threads) for at, threads in asked.times() if at >= ended]
    for (first, before), (_, after) in zip(steps, steps[WINDOW:], strict=False):
        if after - before == most * WINDOW:
            return first - ended
    return float("inf")


if __name__ == "__main__":
    main()
