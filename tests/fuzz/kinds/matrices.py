"""Importance matrices of both formats, used in a conversion of iota."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fuzz.cases import Original
from fuzz.command import command
from fuzz.kinds import Attempt, Work
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.families import find_family
from pocketvlm_converters.quantization.imatrix import column_counts, write_matrix
from store import IOTA

BATCH = 20
_TYPES = ("--quantize", "Q4_K_M", "--mmproj", "f32", "--onnx", "none", "--no-verify")


def originals() -> dict[str, Original]:
    columns = column_counts(find_family(Checkpoint(IOTA)).language().weights)
    rng = np.random.default_rng(0)
    means = {name: rng.random(count, np.float32) for name, count in columns.items()}
    with TemporaryDirectory() as folder:
        path = Path(folder, "matrix")
        write_matrix(path, means, dict.fromkeys(means, np.ones(1)), "samples", 1)
        return {"gguf": Original("gguf", path.read_bytes()), "legacy": Original("imatrix", _legacy(means))}


def _legacy(means: dict[str, np.ndarray]) -> bytes:
    data = struct.pack("<i", len(means))
    for name, mean in means.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, mean.size) + mean.tobytes()
    return data


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    bundle = work.own / "bundle"

    def attempt(_name: str, data: bytes) -> str | None:
        shutil.rmtree(bundle, ignore_errors=True)
        return command("convert", IOTA, "-o", bundle, "--imatrix", work.file("matrix", data), *_TYPES)

    yield attempt
