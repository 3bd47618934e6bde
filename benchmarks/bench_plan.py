"""Predictions of `pocketvlm plan` against measurements: peak memory, and time to first token with a new picture.

    python benchmarks/bench_plan.py [BUNDLE ...] [--pictures 512x512 1280x960 1920x1080]

For each bundle and size a process of its own loads the model, answers a word, and then is asked about pictures that it
has not seen. Memory is that of the process at its peak, mapped files included; time is the median of whole requests for
one token. Nothing else should run.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import tempfile
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from checkpoint import random_weights
from peers import pocketvlm
from PIL import Image

from pocketvlm import LoadOptions
from pocketvlm.bench.measure import fresh, photo
from pocketvlm.files.locate import iota
from pocketvlm.plan.budget import planner_for, read_picture_size
from pocketvlm.system.machine import physical_cores, processor

MEMORY, TIME = 0.1, 0.3  # largest relative errors
PICTURES = 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundles", type=Path, nargs="*", help="iota and SmolVLM-256M's shapes by default")
    options.add_argument("--pictures", nargs="+", default=["512x512", "1280x960", "1920x1080"])
    options.add_argument("--context", type=int, default=4096)
    options.add_argument("--threads", type=int, default=physical_cores())
    options.add_argument("--times", type=int, default=PICTURES, help="pictures in a row, each a new one")
    arguments = options.parse_args()
    print(f"{processor()}, {arguments.threads} threads, context {arguments.context}\n")
    print("| model | encoder | picture | tokens | MB predicted | measured | ratio | s predicted | measured | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    memories, times = [], []
    with ExitStack() as stack:
        # Measurements of other runs, perhaps on a busy machine, must not be used.
        os.environ["XDG_CACHE_HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketvlm-bench-"))
        bundles = arguments.bundles or [iota(), stack.enter_context(random_weights()).path]
        for bundle, size in product(bundles, arguments.pictures):
            memory, time = compare(bundle, size, arguments.context, arguments.threads, arguments.times)
            memories.append(memory)
            times.append(time)
    for name, ratios, aim in (("memory", memories, MEMORY), ("time", times, TIME)):
        kept = sum(1 - aim <= ratio <= 1 + aim for ratio in ratios)
        print(f"{name}: {min(ratios):.2f} to {max(ratios):.2f}, median {median(ratios):.2f}; {kept} of {len(ratios)}"
              f" within {aim:.0%}")  # fmt: skip


def compare(bundle: Path, size: str, context: int, threads: int, times: int) -> tuple[float, float]:
    """Predicted by measured: memory, and time."""
    options = LoadOptions(context_size=context, threads=threads)
    planner = planner_for(bundle, options, picture=read_picture_size(size))
    prediction = planner.predict(planner.usual())
    peer = pocketvlm(bundle, threads, context, str(prediction.configuration.encoder))
    try:
        peer.ask([said("Hello.")], 1)
        seconds = median(peer.ask([said(picture(size), "What is it?")], 1).seconds for _ in range(times))
    finally:
        peer.close()
    assert prediction.first_token_s is not None
    memory, time = prediction.memory_bytes / peer.resident, prediction.first_token_s / seconds
    kind = next(encoder.type for encoder in planner.encoders if encoder.kind == prediction.configuration.encoder)
    print(
        f"| {planner.located.name} {planner.type} | {prediction.configuration.encoder} {kind} | {size} "
        f"| {prediction.picture_tokens} "
        f"| {prediction.memory_bytes / 1e6:.0f} | {peer.resident / 1e6:.0f} | {memory:.2f} "
        f"| {prediction.first_token_s:.2f} | {seconds:.2f} | {time:.2f} |",
        flush=True,
    )
    return memory, time


def said(*parts: str | dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def picture(size: str) -> dict[str, Any]:
    """Return a new photo, which is not in any cache."""
    file = io.BytesIO()
    Image.fromarray(fresh(photo(*read_picture_size(size)))).save(file, "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


if __name__ == "__main__":
    main()
