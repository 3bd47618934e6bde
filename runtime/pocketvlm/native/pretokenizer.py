"""Split text into words and merge their bytes into tokens, where libllama's own split is inexact outside ASCII.

libllama's regular expressions have no classes such as "uppercase or mark". The text for a file with `pocketvlm.split`
is split here, and words become tokens by byte-pair encoding over a tiktoken vocabulary.
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
# By their names in tokenizer.ggml.pre. {L}, {Lu}, ... stand for the characters of these Unicode categories.
_SPLITS = {
    "tekken": (
        r"[^\r\n{L}{N}]?[{Lu}{Lt}{Lm}{Lo}{M}]*[{Ll}{Lm}{Lo}{M}]+"
        r"|[^\r\n{L}{N}]?[{Lu}{Lt}{Lm}{Lo}{M}]+[{Ll}{Lm}{Lo}{M}]*"
        r"|[{N}]| ?[^{s}{L}{N}]+[\r\n/]*|[{s}]*[\r\n]+|[{s}]+(?![^{s}])|[{s}]+"
    ),
}


def is_known(name: str) -> bool:
    """Return whether `split` has a pattern of this name."""
    return name in _SPLITS


@cache
def split(name: str) -> re.Pattern[str]:
    """Return a pattern that matches the words of a text one after another, without gaps. Compiling takes a moment."""
    classes = _categories() | {"s": _SPACE}
    return re.compile(re.sub(r"\{(\w+)\}", lambda match: classes[match[1]], _SPLITS[name]))


@cache
def _categories() -> dict[str, str]:
    """Return the characters of each Unicode category, as ranges in a regular expression's class.

    The keys are general categories, such as Lu, and their first letters.
    """
    bounds: dict[str, list[int]] = {}  # for each name, the start and the end of each range by turns
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category[0] in "LNM":
            for name in (category, category[0]):
                ranges = bounds.setdefault(name, [])
                if ranges and ranges[-1] == code:
                    ranges[-1] = code + 1
                else:
                    ranges += (code, code + 1)
    return {name: "".join(_class_ranges(ranges)) for name, ranges in bounds.items()}


def _class_ranges(bounds: list[int]) -> Iterator[str]:
    for start, end in zip(bounds[::2], bounds[1::2], strict=True):
        yield f"\\U{start:08x}-\\U{end - 1:08x}"


class BytePairMerges:
    """Byte-pair merges of a tiktoken vocabulary: join two neighbours if the result is a token, lowest id first."""

    def __init__(self, ids: Mapping[bytes, int]) -> None:
        """`ids` has every text token, including one for each single byte."""
        self._ids = ids

    def encode(self, word: bytes) -> list[int]:
        """Return the token ids of a word. A word that is a token needs no merges."""
        whole = self._ids.get(word)
        return [whole] if whole is not None else [self._ids[part] for part in self._merge(word)]

    def _merge(self, word: bytes) -> Iterator[bytes]:
        parts: list[bytes] = [word[at : at + 1] for at in range(len(word))]  # b"" once joined to an earlier part
        before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
        heap: list[tuple[int, int, int, int]] = []  # id of the result, ids of both parts, index of the left part

        def push(left: int, right: int) -> None:
            if left >= 0 and right < len(parts):
                pair = parts[left] + parts[right]
                if (token := self._ids.get(pair)) is not None:
                    heapq.heappush(heap, (token, self._ids[parts[left]], self._ids[parts[right]], left))

        for left, right in pairwise(range(len(parts))):
            push(left, right)
        while heap:
            _, left_id, right_id, left = heapq.heappop(heap)
            right = after[left]
            if right >= len(parts) or (self._ids.get(parts[left]), self._ids.get(parts[right])) != (left_id, right_id):
                continue  # one of the two has since been joined to another part
            parts[left] += parts[right]
            parts[right] = b""
            after[left] = after[right]
            if after[left] < len(parts):
                before[after[left]] = left
            push(before[left], left)
            push(left, after[left])
        return (part for part in parts if part)
