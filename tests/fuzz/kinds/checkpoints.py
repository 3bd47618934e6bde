"""Files of a checkpoint: converted, then the bundle is used in a chat."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz import sound
from fuzz.cases import Original
from fuzz.command import command
from fuzz.kinds import Attempt, Work

BATCH = 20
_FORMATS = {".json": "json_text", ".jinja": "template", ".safetensors": "safetensors"}
_TYPES = ("--quantize", "f32", "--mmproj", "f32", "--onnx", "fp32", "--no-verify")


def originals() -> dict[str, Original]:
    return {
        f"{family} {name}": original
        for family, made in sound.MODELS.items()
        for name, original in files_of(made.checkpoint).items()
    }


def files_of(checkpoint: Path) -> dict[str, Original]:
    """Return the files of a checkpoint by name."""
    return {
        path.name: Original(_FORMATS[path.suffix], path.read_bytes())
        for path in sorted(checkpoint.iterdir())
        if path.suffix in _FORMATS
    }


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    bundle = work.own / "bundle"

    def attempt(name: str, data: bytes) -> str | None:
        family, file = name.split(" ")
        folder = sound.link_all(sound.MODELS[family].checkpoint, work.own / "checkpoint", file)
        (folder / file).write_bytes(data)
        shutil.rmtree(bundle, ignore_errors=True)
        refused = command("convert", folder, "-o", bundle, *_TYPES)
        if refused is not None:
            return refused
        encoder = ("gguf", "onnx")[zlib.crc32(data) % 2]
        options = ("--model", bundle, "--vision", encoder, "--max-tokens", 2, "--threads", 1)
        return command("chat", sound.QUESTION, "-i", sound.SAMPLE, *options)

    yield attempt
