"""The time in which answers are searched for places: eight times the text should need eight times as long.

Processor time of each notation for 4,000 and 32,000 characters of hostile pieces, and the worst ratio of all pieces. A
parser that is quadratic has 64. Exits with 1 over `--limit`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from pocketvlm.regions.notations import notations

LENGTHS = (4_000, 32_000)
REPEATED = [
    '{"bbox_2d":[',
    "[",
    "{",
    "}",
    '"',
    '\\"',
    "'",
    "'\\'",
    "[[1,2,3,4]",
    "<ref>",
    "(1,2),",
    "[1, ",
    "<loc0001>",
]
REPEATED += ['{"label":"', "<|box_start|>", "[    ", "(1,2),(3,4)", "<|begin_of_box|>[1,2,3,4]", "image 1 ", " ", "a"]


def seconds(read: Callable[[str], object], text: str) -> float:
    """Return the least processor time of three runs."""
    times = []
    for _ in range(3):
        began = time.process_time()
        read(text)
        times.append(time.process_time() - began)
    return min(times)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--limit", type=float, default=24.0)
    limit = options.parse_args().limit
    most = 0.0
    print("| notation | worst piece | ms, 32,000 characters | ratio |")
    print("|---|---|---|---|")
    for name, notation in notations().items():
        measured = []
        for piece in REPEATED:
            short, long = (seconds(notation.read, piece * (length // len(piece))) for length in LENGTHS)
            measured.append((long / max(short, 1e-4), long, piece))  # less is noise
        ratio, long, piece = max(measured)
        most = max(most, ratio)
        print(f"| {name} | `{piece.replace('|', chr(92) + '|')}` | {long * 1000:.1f} | {ratio:.1f} |")
    return int(most > limit)


if __name__ == "__main__":
    sys.exit(main())
