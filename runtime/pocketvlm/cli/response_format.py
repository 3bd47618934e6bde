"""The file that `--json-schema` names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocketvlm.errors import RequestError

_MOST_BYTES = 1 << 24


def response_format(path: Path) -> dict[str, Any]:
    """Return the `response_format` of a file with a JSON Schema. Raises RequestError where it has none."""
    try:
        with path.open("rb") as file:  # it may be a device without an end
            schema = json.loads(file.read(_MOST_BYTES).decode())
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", "--json-schema") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not a JSON Schema: {error}", "--json-schema") from None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
