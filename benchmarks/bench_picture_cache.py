"""The cost of a cached picture: SmolVLM-256M shapes, random weights. Each line has a ratio to first sight.

A screenshot of 1920x1080, then with one tile changed, again after other text, and loaded anew, where its embeddings
come from files; then eight small pictures in rotation over 100 requests. Encoder runs are counted. Every request makes
one token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import write_checkpoint
from PIL import Image, ImageDraw

from pocketvlm import VLM
from pocketvlm.system.machine import physical_cores, processor
from pocketvlm_converters.convert import convert

SIZE = (1920, 1080)
PICTURES, REQUESTS = 8, 100


def screenshot(seed: int) -> Image.Image:
    """Windows with lines like text on a plain desktop."""
    picture = Image.new("RGB", SIZE, (34, 51, 68))
    draw = ImageDraw.Draw(picture)
    rng = np.random.default_rng(seed)
    for left, top, right, bottom in ((60, 60, 900, 700), (960, 120, 1860, 640), (300, 740, 1500, 1040)):
        draw.rectangle((left, top, right, bottom), "white")
        for y in range(top + 20, bottom - 20, 18):
            for x in range(left + 20, right - 60, 12):
                if rng.random() < 0.7:
                    draw.rectangle((x, y, x + int(rng.integers(3, 10)), y + 9), "black")
    return picture


def small(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(vlm: VLM, picture: Image.Image, before: str = "") -> tuple[float, int]:
    """Seconds, and encoder runs."""
    parts: list[Any] = [{"type": "text", "text": before}] if before else []
    parts += [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
    runs = vlm.statistics().tiles_encoded
    began = time.perf_counter()
    vlm.chat([{"role": "user", "content": parts}], max_tokens=1)
    return time.perf_counter() - began, vlm.statistics().tiles_encoded - runs


def show(name: str, requests: Sequence[tuple[float, int]], first: float) -> None:
    seconds = [one for one, _ in requests]
    median = statistics.median(seconds)
    runs = " ".join(str(count) for count in sorted({count for _, count in requests}))
    print(
        f"| {name} | {runs} | {median:.2f} | {min(seconds):.2f}-{max(seconds):.2f} | {median / first:.3f} |", flush=True
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", type=Path, nargs="?")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--threads", type=int, default=physical_cores())
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="pocketvlm-bench-") as name:
        folder = Path(name)
        path = arguments.bundle
        if path is None:
            (folder / "checkpoint").mkdir()
            write_checkpoint(folder / "checkpoint")
            path = convert(folder / "checkpoint", folder / "bundle", quantize="Q8_0", onnx="int8", verify=False).path
        measure(path, folder / "pictures", arguments.rounds, arguments.threads)


def measure(bundle: Path, files: Path, rounds: int, threads: int) -> None:
    loading: dict[str, Any] = {"threads": threads, "context_size": 4096}
    steps = ("first sight", "one tile changed", "the first again, after other text", "loaded anew, from files")
    timings: dict[str, list[tuple[float, int]]] = {step: [] for step in steps}
    for number in range(rounds):
        with VLM.load(bundle, picture_cache=files, **loading) as vlm:
            picture = screenshot(number)
            timings[steps[0]].append(ask(vlm, picture))
            changed = picture.copy()
            ImageDraw.Draw(changed).rectangle((150, 150, 350, 350), "red")
            timings[steps[1]].append(ask(vlm, changed))
            timings[steps[2]].append(ask(vlm, picture, before="Hello."))
        with VLM.load(bundle, picture_cache=files, **loading) as vlm:
            timings[steps[3]].append(ask(vlm, picture))
        print(f"  round {number + 1}: " + ", ".join(f"{timings[step][-1][0]:.2f} s" for step in steps), file=sys.stderr)
    first = statistics.median(seconds for seconds, _ in timings[steps[0]])
    print(f"{processor()}, {threads} threads, {rounds} rounds, a screenshot of {SIZE[0]}x{SIZE[1]}")
    print("| | encoder runs | s to first token | spread | ratio to first sight |\n|---|---|---|---|---|")
    for step in steps:
        show(step, timings[step], first)
    with VLM.load(bundle, **loading) as vlm:
        requests = [ask(vlm, small(turn % PICTURES)) for turn in range(REQUESTS)]
        counters = vlm.statistics()
    first = statistics.median(seconds for seconds, _ in requests[:PICTURES])
    show(f"{PICTURES} pictures, first sight", requests[:PICTURES], first)
    show(f"the same in rotation, {REQUESTS - PICTURES} requests", requests[PICTURES:], first)
    held = counters.picture_bytes / 1e6
    print(f"{counters.tiles_encoded} encoder runs in {REQUESTS} requests, {held:.1f} MB of embeddings held")


if __name__ == "__main__":
    main()
