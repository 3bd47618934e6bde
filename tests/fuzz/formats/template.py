"""A chat template: text, and the words of its Jinja tags."""

from __future__ import annotations

import re
from typing import Any

from fuzz.records import entries, octets

_WORD = re.compile(r"\{%-?|-?%\}|\{\{-?|-?\}\}|\{#.*?#\}|'[^']*'|\"[^\"]*\"|[A-Za-z_]\w*|\d+|\s+|[^\w\s]", re.DOTALL)


def decode(data: bytes) -> list[Any]:
    return _WORD.findall(data.decode())


def encode(document: Any) -> bytes:
    return b"".join(map(octets, entries(document)))
