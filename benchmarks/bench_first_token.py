"""Seconds to the first token for a photo of 640x480, side by side in one run: SmolVLM-256M shapes, random weights.

llama-cpp-python's own handler, which enlarges the photo to 17 tiles as libmtmd always does, against ours with `detail`
high, auto and low. The language model is Q8_0 everywhere; libmtmd gets the f16 mmproj, its fastest. Every photo is new,
so that no cache helps. `detail: high` does the same work as the handler; auto and low do less, which is their point.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import write_checkpoint
from PIL import Image

from pocketvlm import VLM
from pocketvlm.bundle import Bundle
from pocketvlm.devices import physical_cores, processor
from pocketvlm_converters.convert import convert

SIZE = (640, 480)
AIMS = {"auto": 10, "low": 20}
QUESTION = "What is in the picture?"


def photo(number: int) -> Image.Image:
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] / SIZE[0]
    waves = np.stack([np.sin((9 + number) * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(12 * x * y + number)], -1)
    return Image.fromarray(np.clip(127.5 + 120 * waves, 0, 255).astype(np.uint8))


def handler(bundle: Bundle, threads: int) -> Callable[[Image.Image], object]:
    """llama-cpp-python as its readme says."""
    import llama_cpp
    from llama_cpp.llama_chat_format import Llava15ChatHandler

    chat_handler = Llava15ChatHandler(clip_model_path=str(bundle.file("mmproj")), verbose=False)
    llama = llama_cpp.Llama(
        str(bundle.file("model")), chat_handler=chat_handler, n_ctx=4096, n_threads=threads, verbose=False
    )

    def ask(picture: Image.Image) -> object:
        file = io.BytesIO()
        picture.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        messages: Any = [{"role": "user", "content": parts}]
        return llama.create_chat_completion(messages, max_tokens=1, temperature=0)

    return ask


def ours(vlm: VLM, detail: str) -> Callable[[Image.Image], object]:
    def ask(picture: Image.Image) -> object:
        parts = [{"type": "image", "image": picture, "detail": detail}, {"type": "text", "text": QUESTION}]
        return vlm.chat([{"role": "user", "content": parts}], max_tokens=1)

    return ask


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--threads", type=int, default=physical_cores())
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="pocketvlm-bench-") as name:
        folder = Path(name)
        (folder / "checkpoint").mkdir()
        write_checkpoint(folder / "checkpoint")
        bundle = convert(folder / "checkpoint", folder / "bundle", quantize="Q8_0", mmproj="f16", verify=False)
        with VLM.load(bundle.path, threads=arguments.threads, context_size=4096, vision="onnx") as vlm:
            measure(bundle, vlm, arguments.threads, arguments.rounds)


def measure(bundle: Bundle, vlm: VLM, threads: int, rounds: int) -> None:
    with VLM.load(bundle.path, threads=threads, context_size=4096, vision="gguf") as through_mmproj:
        asked = {"llama-cpp-python's handler": handler(bundle, threads)}
        asked |= {f"pocketvlm, libmtmd, {detail}": ours(through_mmproj, detail) for detail in ("high", "auto", "low")}
        asked |= {f"pocketvlm, {vlm.info.vision}, {detail}": ours(vlm, detail) for detail in ("high", "auto", "low")}
        found: dict[str, list[float]] = {name: [] for name in asked}
        for number in range(rounds):
            for place, (name, ask) in enumerate(asked.items()):
                picture = photo(100 * place + number)
                began = time.perf_counter()
                ask(picture)
                found[name].append(time.perf_counter() - began)
                print(f"  {name}: {found[name][-1]:.2f} s", file=sys.stderr, flush=True)
    print(f"{processor()}, {threads} threads, {rounds} rounds, a photo of {SIZE[0]}x{SIZE[1]}")
    print("| | s to first token | spread | handler / this |")
    print("|---|---|---|---|")
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    slowest = medians["llama-cpp-python's handler"]
    for name, seconds in found.items():
        print(
            f"| {name} | {medians[name]:.2f} | {min(seconds):.2f}-{max(seconds):.2f} | {slowest / medians[name]:.1f} |"
        )
    for detail, aim in AIMS.items():
        ratio = slowest / medians[f"pocketvlm, {vlm.info.vision}, {detail}"]
        print(f"{detail} against the handler: ratio {ratio:.1f} (aim {aim})")


if __name__ == "__main__":
    main()
