"""The pictures that a command line names: folders, files and patterns."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from pocketvlm.errors import RequestError
from pocketvlm.pictures.formats import is_document, is_picture, is_picture_name

_PATTERN = frozenset("*?[")
_SIDECARS = (".xmp", ".txt")  # of IMG.jpg: IMG.jpg.xmp, IMG.xmp, IMG.txt


def is_requests_file(source: Path) -> bool:
    """Return whether a source that stands alone is a file with a request in each line."""
    return not (source.is_dir() or is_picture_name(source.name) or _is_picture(source) or _is_pattern(source))


def find_pictures(sources: Sequence[Path], outputs: Sequence[Path] = ()) -> tuple[dict[str, Path], Counter[str]]:
    """Return pictures, PDFs and videos by name, and how many other files were passed over, by ending.

    A name is the path in the one folder that `sources` name, or the path as it is given. Folders are searched with
    their subfolders, in order of their names. Hidden files and folders are left out, unless a source names one itself.
    `outputs` and the sidecars of pictures are not counted. A file that two sources name is one picture. Raises
    RequestError for a pattern or folder without a match.
    """
    base = sources[0] if len(sources) == 1 and sources[0].is_dir() else None
    pictures: dict[str, Path] = {}
    others: dict[str, Path] = {}
    seen = {path.absolute() for path in outputs}
    for source in sources:
        for path in _files(source):
            if (absolute := path.absolute()) in seen:
                continue
            seen.add(absolute)
            name = (path.relative_to(base) if base else path).as_posix()
            (pictures if _is_picture(path) or _is_missing(path) else others)[name] = path
    accompanied = {path for picture in pictures.values() for path in (picture, picture.with_suffix(""))}
    return pictures, Counter(
        path.suffix.lower()
        for path in others.values()
        if path.suffix.lower() not in _SIDECARS or path.with_suffix("") not in accompanied
    )


def _files(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from sorted(_walk(source))
    elif source.exists():
        yield source
    elif _is_pattern(source):
        # pathlib would also match hidden files.
        matches = sorted(Path(match) for match in glob(str(source.expanduser()), recursive=True))  # noqa: PTH207
        if not matches:
            raise RequestError("matches no file", str(source))
        for match in matches:
            yield from _files(match)
    elif is_picture_name(source.name):  # one that is gone fails alone, when it is read
        yield source
    else:
        raise RequestError("no such file or folder", str(source))


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _is_picture(path: Path) -> bool:
    return is_picture(path) or is_document(path)


def _is_missing(path: Path) -> bool:
    return is_picture_name(path.name) and not path.exists()


def _is_pattern(path: Path) -> bool:
    return not path.exists() and not _PATTERN.isdisjoint(str(path))
