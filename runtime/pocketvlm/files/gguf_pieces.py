"""Language models in several GGUF files, as llama.cpp's gguf-split writes them: NAME-00001-of-00003.gguf and so on.

The first piece has the metadata, and often no tensors.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from pocketvlm.errors import ModelFormatError, ModelNotFoundError
from pocketvlm.files.gguf_header import GGUFHeader, read_header

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def read_model_header(path: str | Path) -> GGUFHeader:
    """Do the same as `read_header`; for the first piece of a model, return the header with the tensors of all pieces.

    Raises ModelFormatError for another piece, and ModelNotFoundError for a piece that is missing.
    """
    header = read_header(path)
    count, number = (header.metadata.get(key, 0) for key in (_COUNT, _NUMBER))
    if not isinstance(count, int) or count < 2:
        return header
    match = _NAME.fullmatch(header.path.name)
    if match is None or int(match[3]) != count or int(match[2]) - 1 != number:
        raise ModelFormatError(
            f"is one of {count} pieces of a model, but not named as such; rename it to NAME-00001-of-{count:05}.gguf, "
            "and the others alike",
            header.path,
        )
    if number:
        raise ModelFormatError(
            f"is piece {number + 1} of {count} of a model; give the first one, {_piece(header.path, match, 1).name}",
            header.path,
        )
    pieces = [header]
    for i in range(1, count):
        piece = _piece(header.path, match, i + 1)
        try:
            pieces.append(read_header(piece))
        except ModelNotFoundError:
            raise ModelNotFoundError(f"is missing: piece {i + 1} of {count} of {header.path.name}", piece) from None
        if (pieces[i].metadata.get(_NUMBER), pieces[i].metadata.get(_COUNT)) != (i, count):
            raise ModelFormatError(f"is not piece {i + 1} of {count} of {header.path.name}", piece)
    tensors = tuple(tensor for piece in pieces for tensor in piece.tensors)
    if header.metadata.get(_TENSORS, len(tensors)) != len(tensors):
        raise ModelFormatError(
            f"its pieces have {len(tensors)} tensors, but it says {header.metadata[_TENSORS]}", header.path
        )
    return replace(header, tensors=tensors, pieces=tuple(pieces))


def piece_files(path: Path) -> list[Path]:
    """Return the files of a model that are there, `path` first; more than one only for the first of several pieces."""
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[2]) != 1:
        return [path]
    others = (_piece(path, match, number) for number in range(2, int(match[3]) + 1))
    return [path, *(piece for piece in others if piece.is_file())]


def _piece(path: Path, match: re.Match[str], number: int) -> Path:
    return path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf")
