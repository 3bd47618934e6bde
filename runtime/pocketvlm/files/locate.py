"""From what a user names to the files to load: iota in the box, a bundle, a model that was pulled, a GGUF pair, or a
language model alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from pocketvlm.errors import BundleError, ModelNotFoundError, PairingError, PocketVLMError
from pocketvlm.files.bundle import MANIFEST, Bundle, is_bundle
from pocketvlm.system.machine import data_folder

MODELS = "models"  # in the user's data folder: what was pulled, by its name
_HOME_OF_IOTA = "pocketvlm_models"
_FILES = (".gguf", ".onnx")
_PART = r"[A-Za-z0-9][\w.-]*"
REPOSITORY = re.compile(f"{_PART}/{_PART}")  # owner/name, as the hub has it
_NAME = re.compile(f"{_PART}|{REPOSITORY.pattern}")


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
    if "" in (target, model, mmproj):  # a variable that is not set; as a path it would be the working directory
        raise ModelNotFoundError("the name of a model or projector is empty")
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
    with _looking_for(path):
        if path.exists() or path.suffix.lower() in _FILES or not _NAME.fullmatch(str(target)):
            return path
        if str(target) == "iota":
            return iota()
        pulled = data_folder() / MODELS / target
        if is_bundle(pulled):
            return pulled
        made = _made_of(str(target))
        known = f"; {made}" if made else " (pocketvlm pull)"
        raise ModelNotFoundError(f"no such bundle, and none of that name was pulled{known}", path)


def _made_of(repository: str) -> str | None:
    """Which pulled one may be meant: one of the catalogue lies under its id, and may tell its source without owner."""
    names = {repository.casefold(), repository.rpartition("/")[2].casefold()}
    for path in sorted((data_folder() / MODELS).glob(f"*/{MANIFEST}")):
        with suppress(BundleError):
            source = Bundle(path.parent).manifest.source.name
            if source.casefold() in names:
                return f"{path.parent.name} was made of {source}"
    return None


@contextmanager
def _looking_for(path: Path) -> Iterator[None]:
    """A name too long, or a folder that may not be entered, as a ModelNotFoundError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PocketVLMError):
            raise
        raise ModelNotFoundError(f"cannot be looked up: {error.strerror or error}", path) from None


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
    for path in (model, mmproj):
        if path is not None:
            with _looking_for(path):
                if path == model and is_bundle(path):
                    raise PairingError("is a bundle; give it alone, not as model=", path)
                if not path.is_file():
                    raise ModelNotFoundError("is a directory" if path.is_dir() else "no such file", path)
    marks = [f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in (model, mmproj) if p is not None]
    onnx = mmproj if mmproj and mmproj.suffix.lower() == ".onnx" else None
    return Located(model.stem, model, None if onnx else mmproj, onnx, _short("|".join(marks)))


def _short(text: str) -> str:
    return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]
