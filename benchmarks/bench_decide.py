"""Ten choices about a picture that was seen, against an answer of one token: the ratio of their times.

A whole answer of one token takes two evaluations: the prompt, and the token, behind which the model ends. It is
measured as two tokens, because random weights end nowhere. `cut` is one that is cut off behind its token. All get a new
question each time, so the picture is in the cache and the question is not. They take turns, and ratios are those of
medians; `processor` is that of processor times. SmolVLM-256M's shapes with random weights, and iota; or BUNDLE.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from checkpoint import random_weights

from pocketvlm import VLM
from pocketvlm.bench.measure import photo
from pocketvlm.messages.question import question_messages
from pocketvlm.system.machine import physical_cores, processor

DIGITS = [str(digit) for digit in range(10)]  # of one token each
WORDS = ["circle", "square", "triangle", "star", "cross", "red circle", "blue circle", "green star", "no", "no one"]
LIMIT = 1.5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", type=Path, nargs="*")
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--threads", type=int, default=physical_cores())
    arguments = options.parse_args()
    print(f"{processor()}, {arguments.threads} threads, {arguments.rounds} rounds\n")
    heads = (f"{'model':16}{'choices':10}{'whole':>10}{'decision':>12}", f"{'ratio':>8}{'processor':>11}")
    print(*heads, f"{'to cut':>8}{'processor':>11}", sep="")
    with ExitStack() as stack:
        bundles = arguments.bundle or [stack.enter_context(random_weights()).path, None]
        for bundle in bundles:
            with VLM.load(bundle, threads=arguments.threads) as vlm:
                for name, choices in (("digits", DIGITS), ("words", WORDS)):
                    compare(vlm, name, choices, arguments.rounds)


def compare(vlm: VLM, name: str, choices: list[str], rounds: int) -> None:
    picture = photo(512, 512).pixels
    numbers = iter(range(10**6))

    def question() -> list[dict[str, object]]:
        return question_messages(f"{next(numbers):06} What do you see in the middle of this picture?", [picture])

    kinds: dict[str, Callable[[], object]] = {
        "whole": lambda: vlm.chat(question(), max_tokens=2, ignore_eos=True),
        "cut": lambda: vlm.chat(question(), max_tokens=1),
        "decide": lambda: vlm.decide(question(), choices),
    }
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(rounds + 2):
        for kind, ask in kinds.items():
            began, computed = time.perf_counter(), time.process_time()
            ask()
            if number > 1:
                times[kind].append((time.perf_counter() - began, time.process_time() - computed))
    seconds, computed_by = ({kind: median(pair[index] for pair in times[kind]) for kind in kinds} for index in (0, 1))
    ratios = [one["decide"] / one[kind] for kind in ("whole", "cut") for one in (seconds, computed_by)]
    print(
        f"{vlm.info.name[:15]:16}{name:10}{1000 * seconds['whole']:7.1f} ms{1000 * seconds['decide']:9.1f} ms"
        f"{ratios[0]:8.2f}{ratios[1]:11.2f}{ratios[2]:8.2f}{ratios[3]:11.2f}"
        f"{'' if ratios[0] <= LIMIT else f'  more than {LIMIT}'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
