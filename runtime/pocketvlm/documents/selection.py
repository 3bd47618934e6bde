"""Which pages of a document are meant: "1-3,7", or "5-" up to the last."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pocketvlm.errors import RequestError, quoted

_RANGE = re.compile(r"([1-9]\d{0,8})(?:\s*-\s*([1-9]\d{0,8})?)?")
_OPEN = re.compile(r"-\s*$")
_MAX_RANGES = 1000


@dataclass(frozen=True)
class PageSelection:
    """Ranges of page numbers from 1, both ends included; an end of None is the last page."""

    ranges: tuple[tuple[int, int | None], ...] = ((1, None),)

    @classmethod
    def parse(cls, text: str, param: str = "pages") -> PageSelection:
        """Raises RequestError, which names `param`, for a text that is not a selection."""
        pieces = text.split(",", _MAX_RANGES)
        if len(pieces) > _MAX_RANGES:
            raise RequestError(f"more than {_MAX_RANGES:,} ranges of pages", param)
        ranges: list[tuple[int, int | None]] = []
        for piece in pieces:
            match = _RANGE.fullmatch(piece.strip())
            if match is None:
                raise RequestError(f"invalid pages {quoted(text)}; use e.g. 1-3,7 or 5-, counted from 1", param)
            first = int(match[1])
            last = int(match[2]) if match[2] else None if _OPEN.search(match[0]) else first
            if last is not None and last < first:
                raise RequestError(f"invalid pages {quoted(text)}: {first}-{last} runs backwards", param)
            ranges.append((first, last))
        return cls(tuple(ranges))

    def numbers(self, count: int) -> Iterator[int]:
        """Yield the numbers in the order of the ranges, each once. Raises ValueError for a page beyond `count`."""
        seen: list[range] = []
        for first, last in self.ranges:
            if first > count or (last or 0) > count:
                raise ValueError(f"there is no page {max(first, last or 0):,}; it has {count:,}")
            part = range(first, (last or count) + 1)
            yield from (number for number in part if not any(number in other for other in seen))
            seen.append(part)
