"""The files that are meant by paths, folders and patterns, and the files that their text goes to."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import RequestError
from pocketvlm.messages.file_kinds import VIDEO_SUFFIXES
from pocketvlm.pictures.formats import is_document, is_picture


@dataclass(frozen=True)
class Input:
    """A file to be read. `name` is its path below the folder that was named, with slashes; else its own name."""

    path: Path
    name: str


def find_inputs(names: Sequence[str]) -> list[Input]:
    """Return the files of paths, folders (with their subfolders, PDFs and pictures) and patterns, each once.

    Raises RequestError for a name without a file.
    """
    inputs: dict[Path, Input] = {}
    for name in names:
        count = 0
        for one in _inputs(name):
            inputs.setdefault(one.path.resolve(), one)
            count += 1
        if not count:
            raise RequestError("there is no such file" if not Path(name).is_dir() else "has no PDFs or pictures", name)
    return list(inputs.values())


def _inputs(name: str) -> Iterator[Input]:
    path = Path(name)
    if path.is_dir():
        for one in sorted(path.rglob("*")):
            if (
                not _is_hidden(one, path)
                and (is_picture(one) or is_document(one))
                and one.suffix.lower() not in VIDEO_SUFFIXES  # they are read only if they are named
            ):
                yield Input(one, one.relative_to(path).as_posix())
    elif path.exists() or not glob.has_magic(name):
        if path.exists():
            yield Input(path, path.name)
    else:
        for match in sorted(glob.glob(name, recursive=True)):  # noqa: PTH207  # Path.glob takes no absolute pattern
            yield from _inputs(match)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def is_folder_output(output: str, names: Sequence[str], inputs: Sequence[Input]) -> bool:
    """Return whether the output is a folder: there are several files, or it is one, or is written as one."""
    separators = (os.sep, os.altsep) if os.altsep else (os.sep,)
    several = len(inputs) > 1 or any(Path(name).is_dir() for name in names)
    return several or Path(output).is_dir() or output.endswith(separators)


def output_names(inputs: Sequence[Input], suffix: str) -> dict[str, Input]:
    """Return the inputs by the names of their outputs: `a.md` for a.pdf, or `a.pdf.md` where there is also an a.png.

    Raises RequestError where two inputs have one name.
    """
    stems = Counter(_stem(one.name) for one in inputs)
    outputs: dict[str, Input] = {}
    for one in inputs:
        stem = _stem(one.name)
        name = f"{one.name if stems[stem] > 1 else stem}{suffix}"
        if name in outputs:
            raise RequestError(
                f"would be written to {name}, as {outputs[name].path} is; read them into two folders", str(one.path)
            )
        outputs[name] = one
    return outputs


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.rpartition('.')[0] or last}"
