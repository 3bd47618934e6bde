"""JSON text: manifests, settings of checkpoints, schemas."""

from __future__ import annotations

import json
from typing import Any


def decode(data: bytes) -> Any:
    return json.loads(data)


def encode(document: Any) -> bytes:
    """Return JSON as Python writes it: NaN and half surrogates stay."""
    return json.dumps(document, default=repr).encode()
