"""Models that were pulled: their size, when they were used last, and how they are removed.

A loaded model holds a lock on `.used` in its folder. The time of that file is the last use.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import ModelError, ModelNotFoundError
from pocketvlm.files.locate import models_folder, pulled_models
from pocketvlm.system.file_lock import try_lock

_USED = ".used"
_DOWNLOAD = re.compile(r"\.(.+)\.download")  # a folder next to the model's, while it is pulled
_REMOVED = ".removed"  # ending of the name of a model that is being removed
_LOCK = ".lock"  # in this folder, locked by the pull


@dataclass(frozen=True)
class PulledModel:
    """`size` is in bytes on disk. `last_used` is in seconds since 1970; None: it was never used.

    Of a model that is not `complete` there is only what an interrupted pull has downloaded.
    """

    name: str
    path: Path
    size: int
    last_used: float | None = None
    complete: bool = True

    @property
    def downloads(self) -> Path:
        return self.path.with_name(f".{self.path.name}.download")


def all_pulled() -> list[PulledModel]:
    """Return the pulled models by name. Those of which only a part was downloaded are not `complete`."""
    complete = pulled_models()
    partial = sorted({*_partial_downloads()} - {*complete})
    models = [_model(name, complete=True) for name in complete] + [_model(name, complete=False) for name in partial]
    return sorted(models, key=lambda model: model.name)


def find_pulled(name: str) -> PulledModel:
    """Return the pulled model of this name. Raises ModelNotFoundError, also for a path."""
    for model in all_pulled():
        if model.name == name:
            return model
    raise ModelNotFoundError("no model of this name was pulled; `pocketvlm models --local` lists them", name)


def remove_pulled(model: PulledModel) -> None:
    """Remove a model and what was downloaded for it. Raises ModelError where it is in use or cannot be removed.

    Only what lies in the folder of the models is removed: of a link, the link.
    """
    with suppress(FileNotFoundError):
        _require_unlocked(model.downloads / _LOCK, "is being pulled; wait for its end", model)
    with suppress(FileNotFoundError):
        _require_unlocked(model.path / _USED, "is in use; close the program that has loaded it", model)
    if not model.path.parent.resolve().is_relative_to(models_folder().resolve()):
        raise ModelError("is a link that leads out of the folder of models; remove the link", model.path.parent)
    for folder in (model.path, model.downloads):
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            _remove_folder(folder, model)
    for left in (*models_folder().glob(f".*{_REMOVED}"), *models_folder().glob(f"*/.*{_REMOVED}")):
        shutil.rmtree(left, ignore_errors=True)  # of a removal that was killed
    if model.path.parent != models_folder():  # of an owner/name
        with suppress(OSError):  # it has other models
            model.path.parent.rmdir()


class UseLock:
    """Says that a model is in use, until it is closed or the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._close = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Closing twice is harmless."""
        self._close()


def mark_used(folder: Path) -> UseLock | None:
    """Remember that a pulled model is used now, and lock it against removal; None where `folder` is not one's.

    A folder that cannot be written is not locked.
    """
    if not folder.is_relative_to(models_folder()):
        return None
    path = folder / _USED
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError:
        return None
    with suppress(OSError):
        os.utime(path)
    try_lock(descriptor, shared=True)
    return UseLock(descriptor)


def _model(name: str, *, complete: bool) -> PulledModel:
    path = models_folder() / name
    model = PulledModel(name, path, 0)
    size = sum(map(_size_of, (path, model.downloads)))
    last_used = None
    with suppress(OSError):
        last_used = (path / _USED).stat().st_mtime
    return PulledModel(name, path, size, last_used, complete)


def _size_of(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def _partial_downloads() -> Iterator[str]:
    folder = models_folder()
    for path in (*folder.glob(".*.download"), *folder.glob("*/.*.download")):
        if match := _DOWNLOAD.fullmatch(path.name):
            yield (path.parent / match[1]).relative_to(folder).as_posix()


def _require_unlocked(path: Path, reason: str, model: PulledModel) -> None:
    """Raise ModelError where a process holds a lock on the file."""
    with path.open("rb") as file:
        if not try_lock(file):
            raise ModelError(reason, model.name)


def _remove_folder(folder: Path, model: PulledModel) -> None:
    """Rename the folder first: a model that is removed by half must not be found."""
    removed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_REMOVED}")
    try:
        folder.rename(removed)
        shutil.rmtree(removed)
    except OSError as error:
        raise ModelError(f"cannot be removed: {error.strerror or error}", model.name) from None
