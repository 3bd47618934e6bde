"""Parse untrusted JSON within limits, and read its values with types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketvlm.errors import CheckpointError, quoted

_LARGEST_INT = 2**31 - 1  # GGUF and libllama store sizes in 32 bits
_LARGEST_FLOAT = 3.4e38  # the largest float32


def parse_object(raw: bytes, path: Path, what: str = "file") -> dict[str, Any]:
    """Parse a JSON object in UTF-8.

    Raises CheckpointError for invalid JSON, JSON that is nested too deep, duplicate keys, and half a surrogate pair.
    """
    try:
        text = raw.decode("utf-8")
        values = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
        if "\\ud" in text.lower():
            json.dumps(values, ensure_ascii=False).encode("utf-8")  # UnicodeError: half a surrogate pair
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"is not a usable {what}: its JSON is nested too deep", path) from None
    except UnicodeError as error:
        raise CheckpointError(f"is not a usable {what}: its JSON is not UTF-8 ({error})", path) from None
    except ValueError as error:
        raise CheckpointError(f"is not a usable {what}: not valid JSON ({error})", path) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"is not a usable {what}: expected a JSON object", path)
    return values


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise CheckpointError(f"has the key {quoted(key)} twice", path)
        values[key] = value
    return values


class Section:
    """One JSON object of the configuration, read with types. Errors name the field, as in `text_config.hidden_size`."""

    def __init__(self, values: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self.values = values
        self.path = path
        self._prefix = prefix

    def section(self, key: str) -> Section:
        """Return the JSON object at `key`, or an empty one if there is none."""
        return Section(self._get(key, dict, {}), self.path, f"{self._prefix}{key}.")

    def present(self, key: str) -> Section:
        """Return the JSON object at `key`, which is required."""
        if self.values.get(key) is None:
            raise CheckpointError(f"{self._prefix}{key} is missing", self.path)
        return self.section(key)

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = _LARGEST_INT) -> int:
        value = int(self._get(key, int, default))
        if not least <= value <= most:
            raise self.wrong(key, f"must be {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, positive: bool = False) -> float:
        value = self._get(key, (int, float), default)
        if not _is_number(value):
            raise self.wrong(key, "must be a number that float32 can hold")
        if positive and value <= 0:
            raise self.wrong(key, "must be above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, bool, default))

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._get(key, str, default))

    def numbers(self, key: str, default: list[float] | None = None) -> list[float]:
        values = self._get(key, list, default)
        if not all(_is_number(value) for value in values):
            raise self.wrong(key, "must be a list of numbers")
        return [float(value) for value in values]

    def require(self, key: str, expected: Any, default: Any) -> None:
        """Raise CheckpointError unless `key`, or its `default`, has the one value that the runtime supports."""
        value = self.values.get(key)
        if (default if value is None else value) != expected:
            raise self.wrong(key, f"only {quoted(expected)} is supported")

    def wrong(self, key: str, reason: str) -> CheckpointError:
        """Return an error that names the field and its value."""
        value = self.values.get(key)
        return CheckpointError(
            f"{self._prefix}{key} is {'missing' if value is None else quoted(value)}; {reason}", self.path
        )

    def _get(self, key: str, kind: Any, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self._prefix}{key} is missing", self.path)
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.wrong(key, f"expected {' or '.join(cls.__name__ for cls in kinds)}")
        return value


def _is_number(value: Any) -> bool:
    """Return whether float32 can hold `value`: False for booleans, NaN, infinity and integers of a thousand digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _LARGEST_FLOAT and not math.isnan(value)
