"""What the catalogue says of a checkpoint: a TOML file each, `pocketvlm_models/catalog/ID.toml`."""

from __future__ import annotations

import sys
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from pocketvlm.errors import ModelFormatError, ModelNotFoundError
from pocketvlm.files.locate import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Repository = Annotated[str, StringConstraints(pattern=f"^{REPOSITORY.pattern}$")]
Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\n]+$")]


class Types(BaseModel):
    """As `pocketvlm convert` takes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantize: Line
    mmproj: Line
    onnx: Line


class Entry(BaseModel):
    """`repository` is the hub's name of the checkpoint, `gguf` that of one with ready GGUF files.

    Without a `repository` it is in the box. `license` is the hub's short name, where it is known; with `gated`, it must
    be accepted there first. `types` are recommended, `pictures` says in a sentence how a picture becomes tokens.
    `config`, `preprocessor` and `processor` are what config.json, preprocessor_config.json and processor_config.json
    say, as far as shapes and the way of pictures depend on them; "null" stands for JSON's, which TOML lacks. `dtype` is
    what most of the published weights are in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    title: Line
    repository: Repository | None = None
    gguf: Repository | None = None
    license: Line | None = None
    gated: bool = False
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


def folder() -> Path:
    return Path(str(files("pocketvlm_models"))) / "catalog"


def entries() -> tuple[Entry, ...]:
    """All, by id. Raises ModelFormatError naming the file and the key at fault."""
    return tuple(read_entry(path) for path in sorted(folder().glob("*.toml")))


def find_entry(name: str) -> Entry | None:
    """By id, or by either of its repositories."""
    folded = name.casefold()
    for entry in entries():
        if folded in (entry.id, *(known.casefold() for known in (entry.repository, entry.gguf) if known)):
            return entry
    return None


def get_entry(name: str) -> Entry:
    """Likewise. Raises ModelNotFoundError with what is known."""
    found = find_entry(name)
    if found is None:
        known = ", ".join(entry.id for entry in entries())
        raise ModelNotFoundError(f"{name} is not in the catalogue; known: {known}")
    return found


def read_entry(path: Path) -> Entry:
    try:
        values = _with_nulls(tomllib.loads(path.read_text("utf-8")))
        return Entry.model_validate({**values, "id": path.stem, "path": path})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ModelFormatError(f"{where}: {first['msg']}", path) from None
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"cannot be read: {error}", path) from None


def _with_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _with_nulls(value) if isinstance(value, dict) else None if value == "null" else value
        for key, value in values.items()
    }
