"""From what a user names to the files to load: iota in the box, a bundle, a GGUF pair, or a language model alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from pocketvlm.bundle import Bundle, is_bundle
from pocketvlm.errors import BundleError, ModelNotFoundError, PairingError

_HOME_OF_IOTA = "pocketvlm_models"


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
    """`target` is a bundle or a .gguf; None with no `model` is iota. Bundles are checked against their hashes.

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
    return _bundle(Path(target), verify)


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
