"""What the tests of one family share: `test_NAME.py` gets `tiny.NAME`, and may have fixtures of its own instead."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.files.gguf_header import read_header
from pocketvlm.files.onnx_header import read_onnx
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision import families
from pocketvlm.vision.encoder import VisionEncoder
from pocketvlm.vision.mtmd import MtmdEncoder
from pocketvlm.vision.onnx import OnnxEncoder
from store import Store
from tiny import Tiny


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> Tiny:
    found: Any = import_module(f"tiny.{request.path.stem.removeprefix('test_')}")
    return found  # type: ignore[no-any-return]  # a module that offers what the protocol says


@pytest.fixture(scope="module")
def changes() -> dict[str, Any]:
    """Arguments of the tiny model, where it is not the family's first."""
    return {}


@pytest.fixture(scope="module")
def reference(family: Tiny, changes: dict[str, Any]) -> Any:
    return family.model(**changes)


@pytest.fixture(scope="module")
def pristine(family: Tiny, changes: dict[str, Any], store: Store) -> Path:
    """Do not write to it."""
    return store.checkpoint(family.__name__.rpartition(".")[2], **changes)


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def bundle(pristine: Path, store: Store) -> Path:
    """In float32, with both encoders. Do not write to it."""
    return store.bundle(pristine)


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def encoder(bundle: Path, request: pytest.FixtureRequest) -> Iterator[VisionEncoder]:
    header = read_header(bundle / "mmproj-f32.gguf")
    found = families.find(header.metadata)
    assert found is not None
    with Model(bundle / "model-F32.gguf") as model:
        if request.param == "onnx":
            yield OnnxEncoder(read_onnx(bundle / "vision-fp32.onnx"), threads=1)
        else:
            mtmd = Mtmd(header.path, model, threads=1, tile_tokens=found[1].tile_tokens)
            yield MtmdEncoder(mtmd, header, found[1])
