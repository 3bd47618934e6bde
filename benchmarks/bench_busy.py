"""Decode while other programs compute: with fixed numbers of threads, and with the number that the engine chooses.

The models take turns, beside no, one and two busy loops, each a process of its own. Then the loops end while an answer
runs: how long until it is as fast as before they began. SmolVLM-256M's shapes with random weights, or BUNDLE.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from checkpoint import random_weights

from pocketvlm import VLM
from pocketvlm.engine.scheduling import step
from pocketvlm.engine.scheduling.thread_count import ThreadCountPolicy
from pocketvlm.system.machine import physical_cores, processor

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Write a long story about a small dog that finds a map."}]
SETTLE = 0.5  # seconds, for loops to begin
WINDOW = 16  # tokens whose speed counts as restored
RESTORED = 0.95  # of the speed without loops


class FixedCount(ThreadCountPolicy):
    """Always all threads."""

    def next_count(self, _: float) -> int:
        return self.count


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", type=Path, nargs="?")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tokens", type=int, default=192)
    options.add_argument("--loops", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--returns", type=int, default=3, help="how often the loops end while an answer runs")
    arguments = options.parse_args()
    count = physical_cores()
    with ExitStack() as stack:
        path = arguments.bundle or stack.enter_context(random_weights()).path
        models = {"adaptive": stack.enter_context(load(path, count, ThreadCountPolicy))}
        for threads in range(1, count + 1):
            models[f"fixed {threads}"] = stack.enter_context(load(path, threads, FixedCount))
        speeds = measure(models, arguments)
        print(f"{processor()}, {count} threads, {arguments.rounds} rounds of {arguments.tokens} tokens; tokens/s\n")
        show(speeds, list(models), arguments.loops)
        usual = median(speeds.get((0, "adaptive"), [0.0])) or speed(models["adaptive"], arguments.tokens)
        for _ in range(arguments.returns):
            for loops in (number for number in arguments.loops if number):
                seconds = returns(models["adaptive"], loops, usual)
                print(f"as fast as without loops {seconds:.2f} s after {loops} ended")


def load(path: Path, threads: int, policy: type[ThreadCountPolicy]) -> VLM:
    step.ThreadCountPolicy = policy  # type: ignore[misc]  # no option turns it off
    return VLM.load(path, threads=threads, speculate="off", context_size=2048)


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


def measure(models: dict[str, VLM], arguments: argparse.Namespace) -> dict[tuple[int, str], list[float]]:
    speeds = defaultdict(list)
    for model in models.values():
        speed(model, 16)
    for _ in range(arguments.rounds):
        for loops in arguments.loops:
            with busy(loops):
                for name, model in models.items():
                    before = model.statistics()
                    speeds[loops, name].append(speed(model, arguments.tokens))
                    after = model.statistics()
                    threads = (after.threads_of_steps - before.threads_of_steps) / (after.steps - before.steps)
                    print(f"  {loops} loops, {name}: {speeds[loops, name][-1]:.1f}, {threads:.2f} threads",
                          file=sys.stderr, flush=True)  # fmt: skip
    return speeds


def speed(model: VLM, tokens: int) -> float:
    timings = model.chat(QUESTION, max_tokens=tokens, ignore_eos=True).timings
    assert timings.decode_tokens_per_second is not None
    return timings.decode_tokens_per_second


def show(speeds: dict[tuple[int, str], list[float]], names: list[str], loops: list[int]) -> None:
    print(f"| busy loops | {' | '.join(names)} | adaptive by the best fixed |")
    print(f"|---|{'---|' * len(names)}---|")
    for number in loops:
        medians = {name: median(speeds[number, name]) for name in names}
        best = max(value for name, value in medians.items() if name != "adaptive")
        cells = [
            f"{medians[name]:.1f} ({min(of):.1f} to {max(of):.1f})" for name in names if (of := speeds[number, name])
        ]
        print(f"| {number} | {' | '.join(cells)} | {medians['adaptive'] / best:.2f} |")


def returns(model: VLM, loops: int, usual: float) -> float:
    """Return the seconds from the end of the loops until tokens come as fast as `usual`."""
    times: list[float] = []
    with busy(loops) as processes:
        ended = 0.0
        for _ in model.stream(QUESTION, max_tokens=900, ignore_eos=True):
            times.append(time.perf_counter())
            if not ended and times[-1] - times[0] > 3:
                for process in processes:
                    process.kill()
                ended = times[-1]
            if ended and times[-1] - ended > 5:
                break
    after = [at for at in times if at >= ended]
    for first, last in zip(after, after[WINDOW:], strict=False):
        if WINDOW / (last - first) >= RESTORED * usual:
            return first - ended
    return float("inf")


if __name__ == "__main__":
    main()
