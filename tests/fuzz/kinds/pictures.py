"""Pictures in a chat with iota."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fuzz.cases import Original
from fuzz.formats import picture_originals
from fuzz.kinds import Attempt, Work
from fuzz.runner import run_in_child
from fuzz.sound import QUESTION
from pocketvlm import VLM

BATCH = 150


def originals() -> dict[str, Original]:
    return {name: Original(kind, data) for name, (kind, data) in run_in_child(picture_originals).items()}


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    with VLM.load(threads=1, vision="gguf", context_size=2048) as vlm:

        def attempt(_name: str, data: bytes) -> None:
            path = str(work.file("picture", data))
            content = [{"type": "image", "path": path, "detail": "low"}, {"type": "text", "text": QUESTION}]
            vlm.chat([{"role": "user", "content": content}], max_tokens=1)

        yield attempt
