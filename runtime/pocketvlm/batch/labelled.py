"""Questions with known answers, to calibrate decisions: a CSV with a head, or lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.decisions.choices import Choices
from pocketvlm.errors import RequestError, quoted, shortened
from pocketvlm.pictures.sources import is_url

# The names of the columns or keys, the one of `batch` first.
_IMAGE, _QUESTION, _ANSWER = ("image", "picture", "file"), ("prompt", "question"), ("answer", "label")


@dataclass(frozen=True)
class LabelledQuestion:
    """A question about `pictures`, and the number of the right choice. `place` is its line, for errors."""

    pictures: tuple[str, ...]
    question: str
    answer: int
    place: str


def read_labelled(path: Path, choices: Choices, question: str | None = None) -> list[LabelledQuestion]:
    """Read labelled questions. Those without a question of their own have `question`.

    Raises RequestError with the file and the line, before anything is asked.
    """
    labelled = []
    try:
        for number, row in _rows(path):
            place = f"{path}, line {number}"
            picture = _value(row, _IMAGE)
            names = [picture] if isinstance(picture, str) else picture
            if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
                raise RequestError(f"needs a picture, as {_IMAGE[0]}", place)
            asked = _value(row, _QUESTION) or question
            if not isinstance(asked, str):
                raise RequestError(f"needs a question, as {_QUESTION[0]} or on the command line", place)
            pictures = tuple(name if is_url(name) else str(path.parent / name) for name in names)
            missing = next((name for name in pictures if not is_url(name) and not Path(name).is_file()), None)
            if missing is not None:
                raise RequestError(f"there is no file {shortened(missing)}", place)
            labelled.append(LabelledQuestion(pictures, asked, _answer(_value(row, _ANSWER), choices, place), place))
    except OSError as error:
        raise RequestError(f"cannot be read: {error.strerror or error}", str(path)) from None
    except UnicodeDecodeError:
        raise RequestError("is not UTF-8", str(path)) from None
    if not labelled:
        raise RequestError("has no labelled questions", str(path))
    return labelled


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            try:
                for row in reader:
                    yield reader.line_num, row
            except csv.Error as error:
                raise RequestError(f"is not a CSV: {error}", f"{path}, line {reader.line_num}") from None
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise RequestError("is not a JSON object", f"{path}, line {number}")
            yield number, value


def _value(row: dict[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _answer(value: Any, choices: Choices, place: str) -> int:
    """Return the number of the choice that a label names; for yes and no also true and false, in any case."""
    if choices.kind == "yes_no" and isinstance(value, bool):
        value = "yes" if value else "no"
    text = str(value).strip() if isinstance(value, str | int) else ""
    if choices.kind == "yes_no":
        text = {"true": "yes", "1": "yes", "false": "no", "0": "no"}.get(text.lower(), text.lower())
    if text not in choices.names:
        known = ", ".join(choices.names[:5]) + (", ..." if len(choices.names) > 5 else "")
        raise RequestError(f"the answer must be one of {shortened(known)}, not {quoted(str(value))}", place)
    return choices.names.index(text)
