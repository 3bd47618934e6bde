"""Make tests/golden/upgrade: what a version leaves on a disk, for the next one to open.

    python tests/golden/upgrade.py FOLDER     # with PYTHONPATH at the sources of the version

A bundle of a tiny model with random weights, a session, entries of the picture cache, the record of a batch, what
`pocketvlm plan` has measured, and what the model answered. All are made by the public means, so the script is the same
for every version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

LOAD: dict[str, Any] = {"context_size": 512, "threads": 1, "vision": "onnx"}
FIRST, SECOND = "How many shapes are there?", "And which colour has it?"
TOKENS = 8
_KEPT = 40  # characters of an answer


def picture() -> Image.Image:
    image = Image.new("RGB", (48, 32), "white")
    ImageDraw.Draw(image).ellipse((8, 4, 32, 28), "red")
    return image


def question(image: object) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": FIRST}]}


def ask(vlm: Any, messages: list[Any]) -> dict[str, Any]:
    """Return what two versions have to agree on."""
    answer = vlm.chat(messages, max_tokens=TOKENS, temperature=0)
    usage = answer.usage
    cached = usage.prompt_tokens_details.cached_tokens
    return {
        "text": answer.text[:_KEPT],
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": cached,
        "picture": [image.cache for image in answer.timings.images],
    }


def make(folder: Path) -> None:
    from pocketvlm import VLM, __version__
    from pocketvlm_converters.convert import convert
    from tiny import smolvlm

    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    smolvlm.save(smolvlm.model(), checkpoint)
    convert(checkpoint, bundle, quantize="Q8_0", mmproj="f16", onnx="int8", verify=False)
    shutil.rmtree(checkpoint)
    picture().save(folder / "picture.png")
    with VLM.load(bundle, picture_cache=folder / "pictures", **LOAD) as vlm:
        first = ask(vlm, [question(picture())])
        vlm.save(folder / "talk.session")
        second = ask(vlm, [*vlm.conversation, {"role": "user", "content": SECOND}])
    answers = {
        "version": __version__,
        "llama_cpp_python": version("llama-cpp-python"),
        "first": first,
        "second": second,
    }
    (folder / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")
    batch(folder)
    run(folder, "plan", "bundle")


def batch(folder: Path) -> None:
    """Ask about the picture, and keep the record."""
    options = ("--model", "bundle", "--threads", "1", "--vision", "onnx", "--max-tokens", str(TOKENS))
    run(folder, "batch", "picture.png", "--prompt", FIRST, "-o", "record.jsonl", *options)


def run(folder: Path, *arguments: str) -> None:
    """Run `pocketvlm` in the folder, with a cache of its own there."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "pocketvlm", *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute()
    target.mkdir(parents=True)
    make(target)
