"""The entries of the catalogue, one TOML file each: `pocketvlm_models/catalog/ID.toml`."""

from __future__ import annotations

import sys
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from pocketvlm.errors import ModelFormatError, ModelNotFoundError, shortened
from pocketvlm.files.locate import REPOSITORY
from pocketvlm.system.suggestions import one_of, similar_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Repository = Annotated[str, StringConstraints(pattern=f"^{REPOSITORY.pattern}$")]
Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\n]+$")]


# What an entry must say itself, whatever it is like.
_OWN = frozenset({"title", "repository", "gguf", "license", "gated", "released", "good_for"})


class Types(BaseModel):
    """The types of a bundle, as in the options of `pocketvlm convert`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantize: Line
    mmproj: Line
    onnx: Line


class Entry(BaseModel):
    """A checkpoint of the catalogue.

    `repository` is the hub's name of the checkpoint, `gguf` that of a repository with ready GGUF files. A model without
    `repository` comes with pocketvlm. `license` is the hub's short name, if known; if `gated`, users must accept it on
    the hub first. `released` is the month of the publication, as YYYY-MM. `good_for` says in one line what to use the
    model for. `dtype` is that of most published weights. `pictures` explains in one sentence how a picture becomes
    tokens. `types` are the recommended ones. `config`, `preprocessor` and `processor` are the parts of config.json,
    preprocessor_config.json and processor_config.json on which the shapes and the pictures' preprocessing depend;
    "null" stands for JSON's null, which TOML lacks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    title: Line
    repository: Repository | None = None
    gguf: Repository | None = None
    license: Line | None = None
    gated: bool = False
    released: Annotated[str, StringConstraints(pattern=r"^20\d\d-(0[1-9]|1[0-2])$")]
    good_for: Annotated[Line, StringConstraints(max_length=46)]  # fits beside the id and the memory in 80 columns
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    pictures: Line
    tokenizer: Literal["bytes", "characters"]
    types: Types
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    processor: dict[str, Any] = {}
    path: Path

    @cached_property
    def family(self) -> str:
        """The checkpoint's model_type."""
        return str(self.config.get("model_type", ""))

    @property
    def age(self) -> int:
        """Months from year 0 to the publication; larger is newer."""
        year, month = self.released.split("-")
        return 12 * int(year) + int(month)


def folder() -> Path:
    return Path(str(files("pocketvlm_models"))) / "catalog"


def entries() -> tuple[Entry, ...]:
    """Return all entries, sorted by id. Raises ModelFormatError, naming the file and the invalid key."""
    return tuple(read_entry(path) for path in sorted(folder().glob("*.toml")))


def find_entry(name: str) -> Entry | None:
    """Return the entry with this id or repository, ignoring case, or None."""
    folded = name.casefold()
    for entry in entries():
        if folded in (entry.id, *(known.casefold() for known in (entry.repository, entry.gguf) if known)):
            return entry
    return None


def get_entry(name: str) -> Entry:
    """Return the entry with this id or repository. Raises ModelNotFoundError, suggesting similar ids."""
    entry = find_entry(name)
    if entry is None:
        raise ModelNotFoundError(f"{shortened(name)} is not in the catalogue{suggested_ids(name)}")
    return entry


def suggested_ids(name: str) -> str:
    """Return the end of a message about a name that is in no entry: similar ids, and where all of them are."""
    similar = similar_names(name.rpartition("/")[2], [entry.id for entry in entries()])
    question = f"; did you mean {one_of(similar)}?" if similar else ";"
    return f"{question} `pocketvlm models` lists all"


def read_entry(path: Path) -> Entry:
    """Read the TOML file of an entry. Raises ModelFormatError."""
    try:
        return Entry.model_validate({**_with_nulls(_read(path, ())), "id": path.stem, "path": path})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        raise ModelFormatError(f"{shortened(key)}: {shortened(first['msg'])}", path) from None


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """Return the values of a file, with those of the entry that its `like` names. `readers` are like this one."""
    if path in readers:
        raise ModelFormatError(f"like: {shortened(path.stem)} is like itself", readers[0])
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"cannot be read: {error}", path) from None
    model = values.pop("like", None)
    if model is None:
        return values
    if not isinstance(model, str):
        raise ModelFormatError("like: Input should be the id of another entry", path)
    shared = _read(path.with_name(f"{model}.toml"), (*readers, path))
    return _merged({key: value for key, value in shared.items() if key not in _OWN}, values)


def _merged(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return `shared` with the values of `own`; tables are merged key by key."""
    return shared | {
        key: _merged(shared[key], value) if isinstance(value, dict) and isinstance(shared.get(key), dict) else value
        for key, value in own.items()
    }


def _with_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _with_nulls(value) if isinstance(value, dict) else None if value == "null" else value
        for key, value in values.items()
    }
