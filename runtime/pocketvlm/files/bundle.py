"""A bundle: a folder with a language model, its vision encoders, and a manifest of their sizes and hashes.

This is the only module that knows the paths in a bundle. Reading always checks sizes, and hashes on request.
Converters write with `Manifest.write`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pocketvlm.errors import BundleError, ModelNotFoundError, quoted, shortened
from pocketvlm.system.atomic import new_file

MANIFEST = "manifest.json"
Role = Literal["model", "mmproj", "vision", "data", "proof"]


class FileEntry(BaseModel):
    """One file of the bundle. `quantization` is the name of its type, such as Q4_K_M, q8_0 or int8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: Role
    quantization: str
    size: int
    sha256: str


class Source(BaseModel):
    """The converted checkpoint. `files` maps its files to their SHA-256; `sha256` covers all, sorted by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    files: dict[str, str]


class ImportanceMatrix(BaseModel):
    """The importance matrix of the language model: `auto` or the name of a file, and the SHA-256 of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str


class Check(BaseModel):
    """One row of a proof: what was measured in a stage, on which files (by SHA-256), and the limits of the value.

    `passed` is None where the value has no limit, and is only reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    measured: str
    value: float | str
    at_least: float | None = None
    at_most: float | None = None
    passed: bool | None
    files: tuple[str, ...] = ()

    @property
    def limit(self) -> str:
        """The limit as text, "" where there is none."""
        if self.at_least is not None:
            return f">= {self.at_least:.4g}"
        return f"<= {self.at_most:.4g}" if self.at_most is not None else ""

    @property
    def shown(self) -> str:
        """The value as text, with enough digits to tell a share near 1 from 1."""
        if isinstance(self.value, str):
            return self.value
        return f"{self.value:.6f}" if self.at_least is not None else f"{self.value:.3g}"


class Run(BaseModel):
    """The checks of one run of `pocketvlm verify`, in order. `against` says what the bundle was compared with.

    `reference` is the SHA-256 of the checkpoint that it was compared with, if it was one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: Literal["itself", "reference"]
    versions: dict[str, str]
    checks: tuple[Check, ...]
    reference: str | None = None

    @property
    def deviation(self) -> Check | None:
        """The first check that failed."""
        return next((check for check in self.checks if check.passed is False), None)

    @property
    def summary(self) -> str:
        """A sentence with the numbers of checks and of those that passed."""
        judged = [check.passed for check in self.checks if check.passed is not None]
        return f"{sum(judged)} of {len(judged)} checks hold"


class Proof(BaseModel):
    """The proof runs of a bundle, and what its conversion recorded so that later runs can compare.

    `tokens_sha256` covers the original tokenizer's ids of a corpus, `renders_sha256` the chat template's text of some
    conversations. `divergence` is the mean KL divergence of the language model from its original, in nats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens_sha256: str | None
    renders_sha256: str | None
    divergence: float | None
    runs: tuple[Run, ...] = ()

    def with_run(self, run: Run) -> Proof:
        """Return a proof with this run in place of an earlier one `against` the same."""
        others = tuple(old for old in self.runs if old.against != run.against)
        return self.model_copy(update={"runs": tuple(sorted((*others, run), key=lambda r: r.against))})


class Scope(BaseModel):
    """What a model of narrow training knows, as the end of a sentence: "iota knows only ...".

    `min_probability` is what the least likely token of a greedy answer has within the scope, as measured. Below it, the
    model is guessing. None: not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    knows: str
    min_probability: Annotated[float, Field(gt=0, lt=1)] | None = None


class Manifest(BaseModel):
    """The content of manifest.json. `family` names the modules in vision/families and converters/families.

    `notes` are sentences about files that are not quite what their type says. Without a `proof`, nothing was verified.
    Models without a `scope` are for pictures and questions of any kind. `regions` is the name of the notation in which
    the model writes places in pictures, where that is not the one of its family.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    family: str
    architecture: str
    files: tuple[FileEntry, ...]
    source: Source
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    imatrix: ImportanceMatrix | None = None
    scope: Annotated[Scope | None, Field(exclude_if=lambda value: value is None)] = None
    regions: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    proof: Proof | None = None

    @field_validator("files")
    @classmethod
    def _each_once(cls, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        names = [entry.name for entry in files]
        if len({*names}) < len(names):
            raise ValueError("lists a file twice")
        return files

    def entry(self, role: Role) -> FileEntry | None:
        return next((entry for entry in self.files if entry.role == role), None)

    def write(self, folder: Path) -> None:
        """Write the file into `folder`. Others read the old file or the new one, never a part."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        with new_file(folder / MANIFEST) as file:
            file.write(f"{text}\n".encode())


class Bundle:
    """A bundle on disk, with a valid manifest and with files of the sizes that it states.

    Without `check`, only the manifest is valid. Raises BundleError or ModelNotFoundError.
    """

    def __init__(self, path: str | Path, *, check: bool = True) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        for entry in self.manifest.files if check else ():
            _check_size(self.path / entry.name, entry)

    def file(self, role: Role) -> Path | None:
        entry = self.manifest.entry(role)
        return self.path / entry.name if entry else None

    def verify(self) -> None:
        """Compare every file with its SHA-256. Raises BundleError for the first that differs."""
        for entry in self.manifest.files:
            _check_size(self.path / entry.name, entry)
            try:
                digest = sha256_of(self.path / entry.name)
            except OSError as error:
                raise BundleError(f"cannot be read: {error.strerror}", self.path / entry.name) from None
            if digest != entry.sha256:
                raise BundleError(
                    f"does not match the manifest: sha256 {digest[:12]}…, expected {entry.sha256[:12]}…",
                    self.path / entry.name,
                )


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def other_file(path: Path) -> str:
    """Return a hint for a path that lies in a bundle, or is a checkpoint or lies in one; "" otherwise."""
    if path.is_file() and is_bundle(path.parent):
        return f"is a file of a bundle; give the folder, {path.parent}"
    folder = path if path.is_dir() else path.parent
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        what = "is a checkpoint" if path is folder else "is a file of a checkpoint"
        return f"{what}; `pocketvlm convert` makes a bundle of it"
    return ""


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.exists():
        raise ModelNotFoundError("no such bundle", folder)
    if not path.is_file():
        reason = "a file, but not a .gguf file" if folder.is_file() else f"it has no {MANIFEST}"
        raise BundleError(other_file(folder) or f"is not a bundle: {reason}", folder)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"])
        raise BundleError(
            f"{shortened(field)}: {shortened(first['msg'])}" if field else shortened(first["msg"]), path
        ) from None
    except OSError as error:
        raise BundleError(str(error), path) from None


def _check_size(path: Path, entry: FileEntry) -> None:
    if Path(entry.name).name != entry.name:
        raise BundleError(f"a file of the bundle must lie in its folder, not at {quoted(entry.name)}", path.parent)
    try:
        if not path.is_file():
            raise BundleError("is listed in the manifest but missing", path)
        size = path.stat().st_size
    except OSError as error:  # such as a name that is too long
        raise BundleError(f"cannot be looked up: {error.strerror}", path) from None
    if size != entry.size:
        raise BundleError(f"has {size:,} bytes, the manifest says {entry.size:,}: truncated or changed", path)
