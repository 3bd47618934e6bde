"""Saved conversations, restored and continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz.cases import Original
from fuzz.kinds import Attempt, Work
from fuzz.runner import run_in_child
from fuzz.sound import QUESTION, SAMPLE
from pocketvlm import VLM

BATCH = 100


def originals(work: Path) -> dict[str, Original]:
    paths = {name: work / f"{name}.session" for name in ("text", "picture")}
    run_in_child(lambda: _save(paths))
    return {name: Original("session", path.read_bytes()) for name, path in paths.items()}


def _save(paths: dict[str, Path]) -> None:
    picture = {"type": "image", "path": str(SAMPLE), "detail": "low"}
    with _loaded() as vlm:
        for name, path in paths.items():
            parts = [picture] if name == "picture" else []
            vlm.chat([{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}], max_tokens=4)
            vlm.save(path)


def _loaded() -> VLM:
    return VLM.load(threads=1, vision="gguf", context_size=512)


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    with _loaded() as vlm:

        def attempt(_name: str, data: bytes) -> None:
            conversation = vlm.restore(work.file("session", data))
            vlm.chat([*conversation, {"role": "user", "content": "Why?"}], max_tokens=1)

        yield attempt
