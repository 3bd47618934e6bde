"""manifest.json of iota's bundle, inspected, then used in a chat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fuzz.cases import Original
from fuzz.command import command
from fuzz.kinds import Attempt, Work
from fuzz.sound import QUESTION, link_all
from pocketvlm.files.bundle import MANIFEST
from pocketvlm.files.locate import iota

BATCH = 100


def originals() -> dict[str, Original]:
    return {"iota": Original("json_text", (iota() / MANIFEST).read_bytes())}


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    folder = link_all(iota(), work.own / "bundle", MANIFEST)

    def attempt(_name: str, data: bytes) -> str | None:
        (folder / MANIFEST).write_bytes(data)
        refused = command("inspect", folder)
        return command("chat", QUESTION, "--model", folder, "--max-tokens", 1, "--threads", 1) or refused

    yield attempt
