"""ONNX vision encoders, inspected, then used in a chat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fuzz.cases import Original
from fuzz.command import command
from fuzz.kinds import Attempt, Work
from fuzz.sound import MODELS, QUESTION, SAMPLE
from pocketvlm.files.bundle import Bundle

BATCH = 40


def originals() -> dict[str, Original]:
    paths = {name: Bundle(sound.bundle).file("vision") for name, sound in MODELS.items()}
    return {name: Original("onnx_model", path.read_bytes()) for name, path in paths.items() if path}


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    def attempt(name: str, data: bytes) -> str | None:
        path = work.file("vision.onnx", data)
        model = Bundle(MODELS[name].bundle).file("model")
        refused = command("inspect", path, "--metadata")
        options = ("--model", model, "--mmproj", path, "--max-tokens", 2, "--threads", 1)
        return command("chat", QUESTION, "-i", SAMPLE, *options) or refused

    yield attempt
