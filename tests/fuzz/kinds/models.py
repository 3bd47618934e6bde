"""GGUF files: language models and projectors: inspected, planned for (half of them), asked about a picture."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz.cases import Original
from fuzz.command import command
from fuzz.kinds import Attempt, Work
from fuzz.sound import MODELS, QUESTION, SAMPLE
from pocketvlm.files.bundle import Bundle

BATCH = 40
ROLES = ("model", "mmproj")


def originals() -> dict[str, Original]:
    return {
        f"{name} {role}": Original("gguf", path.read_bytes())
        for name, sound in MODELS.items()
        for role, path in gguf_files(sound.bundle).items()
    }


def gguf_files(folder: Path) -> dict[str, Path]:
    bundle = Bundle(folder)
    return {role: path for role in ROLES if (path := bundle.file(role))}


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    def attempt(name: str, data: bytes) -> str | None:
        family, role = name.split(" ")
        files = gguf_files(MODELS[family].bundle) | {role: work.file(f"{role}.gguf", data)}
        refused = command("inspect", files[role], "--metadata", "--template")
        pair = ("--model", files["model"], "--mmproj", files["mmproj"])
        planned = ("--memory", "8G") if zlib.crc32(data) % 2 else ()
        return command("chat", QUESTION, "-i", SAMPLE, *pair, *planned, "--max-tokens", 2, "--threads", 1) or refused

    yield attempt
