"""The gain of drafts from the prompt: SmolLM2-135M Q4_1 copies a list, and tells a story that repeats little.

One process, three engines over the same file, `speculate` off, auto and on, which take turns. Each answer goes on to
`--tokens` tokens. The list is greedy: the same three times but for how the rows of a step are added up. The story has
temperature 1, as a greedy one would soon repeat itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from contextlib import ExitStack
from random import Random

from bench_speed import smollm2

from pocketvlm import VLM
from pocketvlm.engine.speculative.draft_length import MODES
from pocketvlm.system.machine import physical_cores, processor

NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emre", "Farah", "Goran", "Hana", "Ivo", "Juno", "Kofi", "Lena")
TOWNS = ("Lisbon", "Oslo", "Turin", "Quito", "Perth", "Cairo", "Kyoto", "Dakar", "Lima", "Riga", "Seoul", "Bergen")


def copying(seed: int) -> str:
    rng = Random(seed)
    rows = [
        f'{{"id": {rng.randrange(10_000)}, "name": "{rng.choice(NAMES)}", "town": "{rng.choice(TOWNS)}"}}'
        for _ in range(16)
    ]
    return "Repeat this list exactly as it is, and nothing else.\n\n" + "\n".join(rows)


def telling(seed: int) -> str:
    rng = Random(seed)
    return f"Tell a long story about {rng.choice(NAMES)}, who walks from {rng.choice(TOWNS)} to {rng.choice(TOWNS)}."


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=256)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=physical_cores())
    arguments = options.parse_args()
    print(f"{processor()}, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}\n", flush=True)
    print("| answer | speculate | tokens/s | ratio to off | range | drafted | right |")
    print("|---|---|---|---|---|---|---|")
    with ExitStack() as stack:
        engines = {
            mode: stack.enter_context(
                VLM.load(model=smollm2(), threads=arguments.threads, context_size=2048, speculate=mode)
            )
            for mode in MODES
        }
        for name, prompt in (("copies a list", copying), ("tells a story", telling)):
            temperature = float(prompt is telling)
            speeds: dict[str, list[float]] = {mode: [] for mode in MODES}
            drafted, accepted = dict.fromkeys(MODES, 0), dict.fromkeys(MODES, 0)
            for number in range(arguments.rounds + 1):
                turn = number % len(MODES)
                for mode in MODES[turn:] + MODES[:turn]:
                    messages = [{"role": "user", "content": prompt(number)}]
                    answer = engines[mode].chat(
                        messages, max_tokens=arguments.tokens, ignore_eos=True, temperature=temperature, seed=number
                    )
                    if number:  # the first one warms up
                        speeds[mode].append(1000 * (arguments.tokens - 1) / answer.timings.decode_ms)
                        drafted[mode] += answer.timings.drafted_tokens
                        accepted[mode] += answer.timings.accepted_tokens
            for mode in MODES:
                ratios = [speed / off for speed, off in zip(speeds[mode], speeds["off"], strict=True)]
                print(
                    f"| {name} | {mode} | {statistics.median(speeds[mode]):.0f} | {statistics.median(ratios):.2f} | "
                    f"{min(ratios):.2f}-{max(ratios):.2f} | {drafted[mode]} | {accepted[mode]} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
