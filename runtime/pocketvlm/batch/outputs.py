"""The files of a batch: the record, and the table that is made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.batch.csv_table import write_csv
from pocketvlm.errors import PocketVLMError, RequestError, shortened

FORMATS = ("jsonl", "csv")


@dataclass(frozen=True)
class Outputs:
    """`record` has a line for each answer; None prints them. `table` is the CSV, if one is wanted.

    `schema` is the JSON Schema of the answers, whose fields become columns.
    """

    record: Path | None
    table: Path | None = None
    is_csv: bool = False
    schema: object = None
    decides: bool = False

    @classmethod
    def named(cls, output: Path, format: str | None) -> Outputs:
        """Return the outputs for `-o` and `--format`. The record of answers.csv is answers.jsonl.

        Raises RequestError for an unknown format, and where table and record would be one file, or the table would
        replace a file that no batch has written.
        """
        if format not in (None, *FORMATS):
            raise RequestError(f"must be {' or '.join(FORMATS)}, not {shortened(format)}", "--format")
        is_csv = (format or output.suffix.lower().lstrip(".")) == "csv"
        if str(output) == "-":
            return cls(None, is_csv=is_csv)
        if not is_csv:
            return cls(output)
        record = output.with_suffix(".jsonl")
        if record == output:
            raise RequestError(f"the record has this name; name the table {output.with_suffix('.csv')}", "-o")
        if output.is_dir():
            raise RequestError("is a folder; name a file in it", str(output))
        if output.exists() and not record.exists():
            raise RequestError(f"exists, and is not made from a record {record.name}; use another -o", str(output))
        return cls(record, output, is_csv=True)

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.record, self.table) if path is not None]

    def write_table(self, lines: Callable[[], Iterable[dict[str, Any]]], name: str) -> None:
        """Write the table, if one is wanted, of lines that are read twice; `name` is the title of the first column."""
        if self.table is None:
            return
        try:
            write_csv(self.table, lines, name, self.schema, decides=self.decides)
        except OSError as error:
            reason = error.strerror or error
            raise PocketVLMError(
                f"{self.table}: cannot be written: {reason}; the answers are in {self.record}, and the same command "
                "makes the table of them"
            ) from None
