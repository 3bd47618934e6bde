"""Sound files to begin with: iota's, and tiny models of the families."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fuzz.runner import run_in_child
from pocketvlm.files.locate import iota
from store import IOTA, ROOT, Store

SAMPLE = ROOT / "docs" / "sample.png"
QUESTION = "How many shapes are there?"
MODEL, MMPROJ = iota() / "model-Q4_K_M.gguf", iota() / "mmproj-q8_0.gguf"


@dataclass(frozen=True)
class Sound:
    """The folder of a checkpoint, and of the bundle that was made from it."""

    checkpoint: Path
    bundle: Path


MODELS = {"iota": Sound(IOTA, iota())}


def prepare(families: Sequence[str]) -> None:
    """Add tiny models of families to MODELS. They are those of the tests, in float32, and are made once."""
    MODELS.update(run_in_child(lambda: _made(families)))  # torch and llama.cpp begin threads


def _made(families: Sequence[str]) -> dict[str, Sound]:
    from tiny import families as modules

    store = Store(ROOT / ".pytest_cache" / "d" / "bundles")
    made = {}
    for name in families:
        checkpoint = store.checkpoint(name, **next(iter(modules()[name].VARIANTS.values())))
        made[name] = Sound(checkpoint, store.bundle(checkpoint))
    return made


def link_all(source: Path, folder: Path, except_for: str) -> Path:
    """Make `folder` anew with links to the files of `source`, but for one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != except_for and path.is_file():
            with suppress(OSError):
                (folder / path.name).symlink_to(path.resolve())
    return folder
