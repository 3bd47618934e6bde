"""Saved conversations, restored and continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.cases import Original
from fuzz.kinds import Attempt, Work
from fuzz.runner import run_in_child
from fuzz.sound import QUESTION, SAMPLE
from pocketvlm import VLM

BATCH = 100


def originals() -> dict[str, Original]:
    return {name: Original("session", data) for name, data in run_in_child(_saved).items()}


def _saved() -> dict[str, bytes]:
    picture, files = {"type": "image", "path": str(SAMPLE), "detail": "low"}, {}
    with _loaded() as vlm, TemporaryDirectory() as folder:
        for name, parts in {"text": [], "picture": [picture]}.items():
            vlm.chat([{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}], max_tokens=4)
            vlm.save(Path(folder, name))
            files[name] = Path(folder, name).read_bytes()
    return files


def _loaded() -> VLM:
    return VLM.load(threads=1, vision="gguf", context_size=512)


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    with _loaded() as vlm:

        def attempt(_name: str, data: bytes) -> None:
            conversation = vlm.restore(work.file("session", data))
            vlm.chat([*conversation, {"role": "user", "content": "Why?"}], max_tokens=1)

        yield attempt
