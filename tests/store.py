"""Tiny checkpoints and bundles that many tests read. Each is made once and kept in pytest's cache for later runs.

An entry is named by a hash of everything it is made with: our sources, the model's recipe, the arguments and the
versions of the libraries. Entries are read-only by convention: `Store.get` fails after a test has written to one. The
workers of pytest-xdist share the store.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).parent.parent
IOTA = ROOT / "models" / "iota" / "checkpoint"
SOURCES = ("runtime/**/*.py", "converters/**/*.py", "tests/tiny/*.py", "models/iota/*.py", "models/iota/checkpoint/*")
PACKAGES = "gguf llama-cpp-python numpy onnx safetensors tokenizers torch transformers".split()
KEPT = 24 * 3600  # seconds
EXACT = {"quantize": "F32", "mmproj": "f32", "onnx": "fp32"}


class Store:
    """The entries of the present sources are below `folder/HASH`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / made_by()
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "used").touch()
        self._seals: dict[Path, str] = {}

    def get(self, make: Callable[[Path], object], kind: str, *key: object) -> Path:
        """Return a folder named `kind`. `make(path)` makes it where it does not exist.

        `key` is everything that it depends on, besides sources and versions.
        """
        name = hashlib.sha256(json.dumps([kind, *key], sort_keys=True).encode()).hexdigest()[:16]
        folder = self._folder / name
        entry = folder / kind
        if not entry.exists():
            folder.mkdir(exist_ok=True)
            with FileLock(folder / "lock"), TemporaryDirectory(dir=folder) as new:
                if not entry.exists():
                    make(Path(new) / kind)
                    (Path(new) / kind).rename(entry)
        seal = sealed(entry)
        assert self._seals.setdefault(entry, seal) == seal, f"a test wrote to {entry}, which others read"
        return entry

    def checkpoint(self, family: str, **changes: Any) -> Path:
        """Return a tiny checkpoint of a family; `changes` are arguments of its model."""

        def make(folder: Path) -> None:
            from tiny import families

            tiny = families()[family]
            tiny.save(tiny.model(**changes), folder)

        return self.get(make, "checkpoint", family, changes)

    def family_bundle(self, family: str) -> Path:
        """Return the bundle, in float32, of a family's first variant."""
        from tiny import families

        return self.bundle(self.checkpoint(family, **next(iter(families()[family].VARIANTS.values()))))

    def bundle(self, checkpoint: Path, **options: Any) -> Path:
        """Convert a checkpoint of this store, or iota's; by default in float32 and without a proof."""
        options = {**EXACT, "verify": False, **options}

        def make(folder: Path) -> None:
            from pocketvlm_converters.convert import convert

            convert(checkpoint, folder, **options)

        return self.get(make, "bundle", checkpoint.parent.name, options)

    def tidy(self) -> None:
        """Remove the entries of other sources that were not used for `KEPT` seconds."""
        for used in self._folder.parent.glob("*/used"):
            if time.time() - used.stat().st_mtime > KEPT:
                shutil.rmtree(used.parent, ignore_errors=True)


@cache
def made_by() -> str:
    """Hash the sources and the versions of the libraries."""
    digest = hashlib.sha256(sys.version.encode())
    for package in PACKAGES:
        digest.update(f"{package} {metadata.version(package)}\n".encode())
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(f"{path.relative_to(ROOT)}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def sealed(folder: Path) -> str:
    """Describe the size and time of every file in a folder."""
    stats = {path.name: path.stat() for path in sorted(folder.iterdir())}
    return ", ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats.items())
