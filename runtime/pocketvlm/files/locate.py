"""From what a user names to the files to load: iota in the box, a bundle, a model that was pulled, a GGUF pair, or a
language model alone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from pocketvlm.devices import data_folder
from pocketvlm.errors import BundleError, ModelNotFoundError, PairingError
from pocketvlm.files.bundle import Bundle, is_bundle

MODELS = "models"  # in the user's data folder: what was pulled, by its name
_HOME_OF_IOTA = "pocketvlm_models"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Located:
    """Files to load: `mmproj` and `onnx` hold the vision encoder, each in its format.

    `fingerprint` changes when a file does.
    """

    name: str
    model: Path
    mmproj: Path | None
    onnx: Path | None
    fingerprint: str


def locate(
    target: str | Path | None, *, model: str | Path | None, mmproj: str | Path | None, verify: bool = True
) -> Located:
    """`target` is a bundle, the name of one that was pulled, or a .gguf; None with no `model` is iota. Bundles are
    checked against their hashes.

    `mmproj` may be an ONNX vision encoder as well, told by its name.
    """
    if target is not None and model is not None:
        raise PairingError("give either a bundle or model=, not both", target)
    if target is None and model is None:
        if mmproj is not None:
            raise PairingError("a projector needs a language model: give model= as well", mmproj)
        target = iota()
    if target is not None and Path(target).suffix.lower() == ".gguf":
        target, model = None, target
    if model is not None:
        return _pair(Path(model), Path(mmproj) if mmproj is not None else None)
    assert target is not None
    if mmproj is not None:
        raise PairingError("a bundle brings its own projector; mmproj= goes with model=", target)
    return _bundle(bundle_path(target), verify)


def bundle_path(target: str | Path) -> Path:
    """A path where there is anything, else the bundle that was pulled under this name, if there is one."""
    path = Path(target)
    if not path.exists() and _NAME.fullmatch(str(target)):
        if str(target) == "iota":
            return iota()
        pulled = data_folder() / MODELS / target
        if is_bundle(pulled):
            return pulled
        raise ModelNotFoundError("no such bundle, and none of that name was pulled (pocketvlm pull)", path)
    return path


def iota() -> Path:
    """The bundle in the box."""
    if find_spec(_HOME_OF_IOTA) is None:
        raise ModelNotFoundError("iota is not installed; give a model")
    return Path(str(files(_HOME_OF_IOTA))) / "iota"


def _bundle(path: Path, verify: bool) -> Located:
    bundle = Bundle(path)
    if verify:
        bundle.verify()
    model = bundle.file("model")
    if model is None:
        raise BundleError("the manifest lists no language model", path)
    seal = "".join(entry.sha256 for entry in bundle.manifest.files)
    return Located(bundle.manifest.name, model, bundle.file("mmproj"), bundle.file("vision"), _short(seal))


def _pair(model: Path, mmproj: Path | None) -> Located:
    if is_bundle(model):
        raise PairingError("is a bundle; give it alone, not as model=", model)
    for path in (model, mmproj):
        if path is not None and not path.is_file():
            raise ModelNotFoundError("is a directory" if path.is_dir() else "no such file", path)
    marks = [f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in (model, mmproj) if p is not None]
    onnx = mmproj if mmproj and mmproj.suffix.lower() == ".onnx" else None
    return Located(model.stem, model, None if onnx else mmproj, onnx, _short("|".join(marks)))


def _short(text: str) -> str:
    return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]
