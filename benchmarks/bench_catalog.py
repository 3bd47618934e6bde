"""The catalogue's memory against measured memory: full-size checkpoints of random weights, converted and asked.

    python benchmarks/bench_catalog.py [ID ...] [--keep FOLDER]

For each model and vision encoder a process of its own loads the bundle, with the catalogue's types and context, and is
asked about one picture of 640x480. Measured is the most that it had in memory, mapped files included (VmHWM), and what
of that was its own at the end (RssAnon). About 8 GB of disk for a model of 1 B parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from catalog_checkpoint import write_entry

from pocketvlm_converters.catalog.entry import get_entry
from pocketvlm_converters.catalog.estimates import PICTURE, figures
from pocketvlm_converters.convert import convert

AIM = 0.1  # largest relative error
CHAT = """
import io, json, sys
import numpy as np
from PIL import Image
from pocketvlm import VLM
from pocketvlm.system.machine import process_memory
bundle, encoder, context, width, height = sys.argv[1:]
pixels = np.random.default_rng(1).integers(0, 255, (int(height), int(width), 3), np.uint8)
file = io.BytesIO()
Image.fromarray(pixels).save(file, "PNG")
content = [{"type": "image", "image": file.getvalue()}, {"type": "text", "text": "What is in the picture?"}]
with VLM.load(bundle, vision=encoder, context_size=int(context), verify=False) as vlm:
    answer = vlm.chat([{"role": "user", "content": content}], max_tokens=8)
    taken = process_memory()
    print(json.dumps([taken.peak, taken.anonymous, answer.timings.images[0].tokens]))
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="*", default=["smolvlm-256m", "smolvlm-500m", "lfm2-vl-450m"])
    options.add_argument("--keep", type=Path, help="keep the bundles in this folder, and use those that are there")
    arguments = options.parse_args()
    print("| model | encoder | tokens | MB predicted | measured | ratio | of its own | converted in |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    ratios = []
    with ExitStack() as stack:
        # Measurements of other runs must not be used.
        os.environ["XDG_CACHE_HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketvlm-bench-"))
        kept = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketvlm-bench-")))
        kept.mkdir(exist_ok=True)
        for name in arguments.models:
            ratios += compare(name, kept / name)
    off = max(abs(ratio - 1) for ratio in ratios)
    print(f"memory: {min(ratios):.2f} to {max(ratios):.2f}, the aim is {1 - AIM:.1f} to {1 + AIM:.1f}")
    return int(off > AIM)


def compare(name: str, bundle: Path) -> list[float]:
    entry, began = get_entry(name), time.perf_counter()
    predictions, seconds = figures(entry), ""
    if not bundle.exists():
        with tempfile.TemporaryDirectory(prefix="pocketvlm-bench-", dir=bundle.parent) as folder:
            write_entry(entry, Path(folder))
            convert(folder, bundle, verify=False, **entry.types.model_dump())
        seconds = f"{time.perf_counter() - began:.0f} s"
    ratios = []
    for encoder, predicted in predictions.memory.items():
        command = [sys.executable, "-c", CHAT, str(bundle), encoder, str(predictions.context), *map(str, PICTURE)]
        peak, own, tokens = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert tokens == predictions.picture_tokens
        ratios.append(predicted / peak)
        print(
            f"| {name} {entry.types.quantize} | {encoder} | {tokens} | {predicted / 1e6:.0f} | {peak / 1e6:.0f} "
            f"| {ratios[-1]:.2f} | {own / 1e6:.0f} | {seconds} |",
            flush=True,
        )
    return ratios


if __name__ == "__main__":
    sys.exit(main())
