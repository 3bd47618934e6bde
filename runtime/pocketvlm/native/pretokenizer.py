"""Splits of a text into words that libllama only approximates outside ASCII, and the merges within a word.

libllama has no classes such as "uppercase or mark" in its regular expressions. Where a file says `pocketvlm.split`, its
text is split here, and words become tokens as byte-pair encoding over a tiktoken vocabulary makes them.
"""

from __future__ import annotations

import heapq
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise

_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space
# By the name that tokenizer.ggml.pre has for them; {L}, {Lu}, ... stand for what is in a class of these characters.
_SPLITS = {
    "tekken": (
        r"[^\r\n{L}{N}]?[{Lu}{Lt}{Lm}{Lo}{M}]*[{Ll}{Lm}{Lo}{M}]+"
        r"|[^\r\n{L}{N}]?[{Lu}{Lt}{Lm}{Lo}{M}]+[{Ll}{Lm}{Lo}{M}]*"
        r"|[{N}]| ?[^{s}{L}{N}]+[\r\n/]*|[{s}]*[\r\n]+|[{s}]+(?![^{s}])|[{s}]+"
    ),
}


def is_known(name: str) -> bool:
    return name in _SPLITS


@cache
def split(name: str) -> re.Pattern[str]:
    """Finds the words of a text, one after the other, with nothing between them. Takes a moment the first time."""
    classes = _categories() | {"s": _SPACE}
    return re.compile(re.sub(r"\{(\w+)\}", lambda found: classes[found[1]], _SPLITS[name]))


@cache
def _categories() -> dict[str, str]:
    """Ranges of characters, as a class of a regular expression takes them, by general category and its first letter."""
    found: dict[str, list[int]] = {}
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category[0] in "LNM":
            for name in (category, category[0]):
                ends = found.setdefault(name, [])
                if ends and ends[-1] == code:
                    ends[-1] = code + 1
                else:
                    ends += (code, code + 1)
    return {name: "".join(_ranges(ends)) for name, ends in found.items()}


def _ranges(ends: list[int]) -> Iterator[str]:
    for first, behind in zip(ends[::2], ends[1::2], strict=True):
        yield f"\\U{first:08x}-\\U{behind - 1:08x}"


class BytePairMerges:
    """The merges of a tiktoken vocabulary: two neighbours become one where that is a token, the lowest id first."""

    def __init__(self, ids: Mapping[bytes, int]) -> None:
        """`ids` holds every token that is text, each byte by itself among them."""
        self._ids = ids

    def encode(self, word: bytes) -> list[int]:
        """Token ids of a word. A word that is a token needs no merges."""
        whole = self._ids.get(word)
        return [whole] if whole is not None else [self._ids[part] for part in self._merged(word)]

    def _merged(self, word: bytes) -> Iterator[bytes]:
        parts: list[bytes] = [word[at : at + 1] for at in range(len(word))]  # b"" once merged into an earlier one
        before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
        heap: list[tuple[int, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < len(parts):
                one, other = parts[left], parts[right]
                if (made := self._ids.get(one + other)) is not None:
                    heapq.heappush(heap, (made, self._ids[one], self._ids[other], left))

        for left, right in pairwise(range(len(parts))):
            offer(left, right)
        while heap:
            _, one, other, left = heapq.heappop(heap)
            right = after[left]
            if right >= len(parts) or (self._ids.get(parts[left]), self._ids.get(parts[right])) != (one, other):
                continue  # one of the two has been merged with another since
            parts[left] += parts[right]
            parts[right] = b""
            after[left] = after[right]
            if after[left] < len(parts):
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        return (part for part in parts if part)
