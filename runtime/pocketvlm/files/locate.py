"""Find the files to load: the built-in iota, a bundle, a pulled model, a GGUF pair, or a language model alone."""

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
from pocketvlm.files.bundle import MANIFEST, Bundle, Scope, is_bundle
from pocketvlm.files.gguf_pieces import piece_files
from pocketvlm.system.machine import data_folder

MODELS = "models"  # in the user's data folder: a folder for each pulled model
_IOTA_PACKAGE = "pocketvlm_models"
_MODEL_SUFFIXES = (".gguf", ".onnx")
_PART = r"[A-Za-z0-9][\w.-]*"
REPOSITORY = re.compile(f"{_PART}/{_PART}")  # owner/name on the hub
_NAME = re.compile(f"{_PART}|{REPOSITORY.pattern}")


@dataclass(frozen=True)
class Located:
    """Files to load. `mmproj` and `onnx` hold the vision encoder, each in its format.

    `fingerprint` changes when a file changes. `scope` and `regions` are those of the bundle's manifest.
    """

    name: str
    model: Path
    mmproj: Path | None
    onnx: Path | None
    fingerprint: str
    scope: Scope | None = None
    regions: str | None = None


def locate(
    target: str | Path | None, *, model: str | Path | None, mmproj: str | Path | None, verify: bool = True
) -> Located:
    """Find the files of a model.

    `target` is the path of a bundle or .gguf file, or the name of a pulled bundle. Without `target` and `model` it is
    iota. `mmproj` may also be an ONNX vision encoder, by its suffix. With `verify`, bundles are compared with their
    hashes. Raises ModelNotFoundError, PairingError or BundleError.
    """
    if "" in (target, model, mmproj):  # such as an unset variable; as a path it would be the working directory
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
        raise PairingError("a bundle has its own projector; use mmproj= with model=", target)
    return _bundle(bundle_path(target), verify)


def bundle_path(target: str | Path) -> Path:
    """Return the path where something exists there, or else that of the bundle that was pulled under this name.

    Raises ModelNotFoundError where there is neither.
    """
    path = Path(target)
    with _lookup_errors(path):
        if path.exists() or path.suffix.lower() in _MODEL_SUFFIXES or not _NAME.fullmatch(str(target)):
            return path
        if str(target) == "iota":
            return iota()
        pulled = models_folder() / target
        if is_bundle(pulled):
            return pulled
        source = bundle_made_from(str(target))
        hint = f"; {source}" if source else " (pocketvlm pull)"
        raise ModelNotFoundError(f"no such bundle, and none of that name was pulled{hint}", path)


def models_folder() -> Path:
    """Return the folder with a folder for each pulled model."""
    return data_folder() / MODELS


def pulled_models() -> list[str]:
    """Return the names of all pulled models, as `locate` takes them, in order."""
    folder = models_folder()
    with suppress(OSError):
        manifests = [*folder.glob(f"*/{MANIFEST}"), *folder.glob(f"*/*/{MANIFEST}")]
        names = (path.parent.relative_to(folder).as_posix() for path in manifests)
        return sorted(name for name in names if _NAME.fullmatch(name))  # not what is being written
    return []


def bundle_made_from(repository: str) -> str | None:
    """Return a hint at a pulled bundle that was made from this repository.

    Bundles of the catalogue lie under their ids, and their source may be named without its owner.
    """
    names = {repository.casefold(), repository.rpartition("/")[2].casefold()}
    for path in sorted(models_folder().glob(f"*/{MANIFEST}")):
        with suppress(BundleError):
            source = Bundle(path.parent).manifest.source.name
            if source.casefold() in names:
                return f"{path.parent.name} was made from {source}"
    return None


@contextmanager
def _lookup_errors(path: Path) -> Iterator[None]:
    """Turn an OSError, such as for a name that is too long, into a ModelNotFoundError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PocketVLMError):
            raise
        raise ModelNotFoundError(f"cannot be looked up: {error.strerror or error}", path) from None


def iota() -> Path:
    """Return the folder of the built-in bundle."""
    if find_spec(_IOTA_PACKAGE) is None:
        raise ModelNotFoundError("iota is not installed; name another model")
    return Path(str(files(_IOTA_PACKAGE))) / "iota"


def _bundle(path: Path, verify: bool) -> Located:
    bundle = Bundle(path)
    if verify:
        bundle.verify()
    model = bundle.file("model")
    if model is None:
        raise BundleError("the manifest lists no language model", path)
    hashes = "".join(entry.sha256 for entry in bundle.manifest.files)
    manifest = bundle.manifest
    encoders = bundle.file("mmproj"), bundle.file("vision")
    return Located(manifest.name, model, *encoders, _fingerprint(hashes), manifest.scope, manifest.regions)


def _pair(model: Path, mmproj: Path | None) -> Located:
    for path in (model, mmproj):
        if path is not None:
            with _lookup_errors(path):
                if path == model and is_bundle(path):
                    own = "is a bundle, which has its own projector; omit mmproj="
                    raise PairingError(own if mmproj else "is a bundle; name it alone, not as model=", path)
                if not path.is_file():
                    raise ModelNotFoundError("is a directory" if path.is_dir() else "no such file", path)
    paths = [*piece_files(model), *([mmproj] if mmproj else [])]
    states = [f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in paths]
    onnx = mmproj if mmproj and mmproj.suffix.lower() == ".onnx" else None
    return Located(model.stem, model, None if onnx else mmproj, onnx, _fingerprint("|".join(states)))


def _fingerprint(text: str) -> str:
    return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]
