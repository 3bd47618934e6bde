"""The content of an answer as it comes, and the regions that it names once it is whole."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from pocketvlm.messages import ImageTimings, Region
from pocketvlm.regions.find import find_regions
from pocketvlm.regions.notation import Notation

# The end of plane 16: private use characters, far from those of icon fonts. An answer could still write one, as byte by
# byte it can write any character, and it would be lost.
_PLACEHOLDERS = range(0x10F000, 0x10FFFE)


class AnswerText:
    """Collects the content of one answer.

    Control tokens of the notation are not part of the content, but say where a place begins and ends. Until here, each
    is a placeholder of one character: `placeholders` maps them to the ids of their tokens.
    """

    def __init__(self, notation: Notation, control_tokens: Mapping[str, int], *, begun: str = "") -> None:
        """`begun` is the beginning of the content if the answer continues it."""
        self._notation = notation
        self._begun = begun
        self._texts: list[str] = []
        pattern = notation.controls
        names = [text for text in control_tokens if pattern is not None and pattern.fullmatch(text)]
        unused = (code for code in _PLACEHOLDERS if chr(code) not in begun)
        self._written = dict(zip(unused, names, strict=False))
        self._removed = dict.fromkeys(self._written)
        self.placeholders = {chr(code): control_tokens[text] for code, text in self._written.items()}

    def push(self, text: str) -> str:
        """Add content, and return it without placeholders."""
        self._texts.append(text)
        return self.shown(text)

    def shown(self, text: str) -> str:
        """Return any text of the answer without placeholders."""
        return text.translate(self._removed) if self._removed else text

    def regions(self, images: Sequence[ImageTimings]) -> list[Region]:
        """Return the regions that the content names in the pictures of its request. Spans are those of the content."""
        held = self._begun + "".join(self._texts)
        shift = len(self._begun)
        marks = [(place, self._written[ord(one)]) for place, one in enumerate(held) if ord(one) in self._written]
        regions = find_regions(held.translate(self._written), self._notation, images)
        starts, lengths = [0], [0]  # where each mark begins in the text that was read, and how long all up to it are
        for place, mark in marks:
            starts.append(place + lengths[-1] - len(starts) + 1)
            lengths.append(lengths[-1] + len(mark))

        def in_content(place: int) -> int:
            last = bisect_left(starts, place, lo=1) - 1  # the last mark that begins before
            inside = min(lengths[last] - lengths[last - 1], place - starts[last]) if last else 0
            return place - (lengths[last - 1] if last else 0) - inside - shift

        def moved(region: Region) -> Region:
            begin, end = map(in_content, region.span)
            return region.model_copy(update={"span": (max(begin, 0), end)})

        return [one for one in map(moved, regions) if one.span[1] > 0]
