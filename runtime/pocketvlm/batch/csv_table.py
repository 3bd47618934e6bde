"""Answers as a CSV that spreadsheets open: a row for each request, a column for each field of a schema.

RFC 4180, with the byte order mark by which Excel knows UTF-8. A text that a spreadsheet would take for a formula gets
an apostrophe in front: an answer may repeat what is written in a picture.
https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketvlm.batch.lines import answer_probability, answer_text, answers_json, error_text, is_cut_off
from pocketvlm.errors import printable
from pocketvlm.system.atomic import new_file

_FORMULA = re.compile("[=+\\-@\t\n\uff1d\uff0b\uff0d\uff20]")  # the last four are full-width
_PROBABILITY = "probability"
_DEPTH = 4  # of objects whose fields get columns


def write_csv(
    path: Path,
    lines: Callable[[], Iterable[dict[str, Any]]],
    name: str,
    schema: object = None,
    *,
    decides: bool = False,
) -> None:
    """Write a table of lines, which are read twice; `name` is the title of the first column, their custom_id.

    It replaces `path` when it is complete. Where it `decides`, or one of the lines does, it has a column for the
    probability. Fields that the schema does not name follow those that it names. Raises
    OSError.
    """
    fields = dict.fromkeys(schema_fields(schema))
    if schema is not None:
        for line in lines():
            fields |= dict.fromkeys(_values(line) or ())
    decides = decides or (not fields and any(answer_probability(line) is not None for line in lines()))
    table = CsvTable([*fields], name, decides=decides)
    with new_file(path) as file:
        file.write(codecs.BOM_UTF8 + table.head().encode())
        for line in lines():
            file.write(table.row(line).encode("utf-8", "backslashreplace"))  # a file's name may not be Unicode


class CsvTable:
    """Makes the rows of a table: custom_id, the fields of an answer or else its text, and why a request failed.

    Where it `decides`, the probability of the answer follows: that of yes, or of the likeliest choice.
    """

    def __init__(self, fields: list[str], name: str, *, decides: bool = False) -> None:
        self._fields, self._decides = fields, decides and not fields
        self._name, self._error = (_unused(own, fields) for own in (name, "error"))

    def head(self) -> str:
        more = [_PROBABILITY] if self._decides else []
        return _row([self._name, *(self._fields or ["answer"]), *more, self._error])

    def row(self, line: dict[str, Any]) -> str:
        custom_id, error = line["custom_id"], error_text(line)
        if not self._fields:
            more = [answer_probability(line)] if self._decides else []
            return _row([custom_id, answer_text(line) or answers_json(line) or "", *more, error])
        values = _values(line)
        if values is None and not error:
            fault = "the answer was cut off; raise --max-tokens" if is_cut_off(line) else "the answer is not an object"
            error = f"{fault}: {answer_text(line)}"
        return _row([custom_id, *((values or {}).get(field) for field in self._fields), error])


def _unused(name: str, fields: list[str]) -> str:
    while name in fields:
        name += "_"
    return name


def schema_fields(schema: object) -> list[str]:
    """Return the columns of a JSON Schema: its properties, those of objects within as `outer.inner`."""
    return [*_properties(schema, schema, "", _DEPTH)] if isinstance(schema, Mapping) else []


def _properties(schema: object, root: Mapping[str, Any], prefix: str, depth: int) -> Iterator[str]:
    properties = _resolved(schema, root).get("properties")
    for key, value in properties.items() if isinstance(properties, Mapping) else ():
        inner = [*_properties(value, root, f"{prefix}{key}.", depth - 1)] if depth > 1 else []
        yield from inner or [f"{prefix}{key}"]


def _resolved(schema: object, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference within the schema, such as pydantic writes for models in models."""
    for _ in range(_DEPTH):
        if not isinstance(schema, Mapping):
            break
        if not isinstance(reference := schema.get("$ref"), str):
            return schema
        schema = root
        for key in reference.removeprefix("#").strip("/").split("/"):
            schema = schema.get(key) if key and isinstance(schema, Mapping) else schema
    return {}


def _values(line: dict[str, Any]) -> dict[str, Any] | None:
    """Return the fields of an answer, those of objects within as `outer.inner`; None where it is not an object."""
    try:
        value = json.loads(answer_text(line) or "")
    except (ValueError, RecursionError):
        return None
    return dict(_flat(value, "", _DEPTH)) if isinstance(value, dict) else None


def _flat(value: dict[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner and depth > 1:
            yield from _flat(inner, f"{prefix}{key}.", depth - 1)
        else:
            yield f"{prefix}{key}", inner


def _row(values: Iterable[object]) -> str:
    row = io.StringIO()
    csv.writer(row).writerow(map(_cell, values))
    return row.getvalue()


def _cell(value: object) -> object:
    """Return what stands in a cell. Numbers stay numbers; lists of texts and numbers are joined."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        value = "; ".join(one if isinstance(one, str) else json.dumps(one) for one in value)
    elif not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    text = printable(value.replace("\r\n", "\n"), " ")
    return f"'{text}" if _FORMULA.match(text) else text
