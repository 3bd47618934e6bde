"""Places between marks: numbers in brackets, pairs in parentheses, and tokens that stand for places. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

from pocketvlm.regions.place import GAP, NUMBER, Kind, Place

_JOINED = re.compile(r"[\s,:;\[(<]{0,40}")  # what may stand between a label and its place, or between two places
_MAX_LABEL = 300
_MAX_PAIRS = 16
_GROUP = rf"[\[(<]{GAP}{NUMBER}(?:{GAP},{GAP}{NUMBER}){{3,31}}{GAP}[\])>]"
_PAIR = rf"\({GAP}{NUMBER}{GAP},{GAP}{NUMBER}{GAP}\)"
_NUMBER = re.compile(NUMBER)
_COUNTS: dict[int, Kind] = {4: "box", **dict.fromkeys(range(6, 2 * _MAX_PAIRS + 1, 2), "polygon")}  # by their numbers

Marks = tuple[str, str]  # what opens, and what closes


class _Labels:
    """The label that is open or was closed last, while marks and places are read in the order of the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._opened: int | None = None  # where the open label begins
        self._label, self._start, self._end = "", 0, -1

    def open(self, start: int, end: int) -> None:
        self._start, self._opened = start, end

    def close(self, start: int, end: int) -> None:
        if self._opened is not None:
            self._label, self._end, self._opened = self._text[self._opened : start][:_MAX_LABEL].strip(), end, None

    def skip(self, start: int, end: int) -> None:
        """Go on behind a mark, if it follows the label."""
        if self._follows(start):
            self._end = end

    def before(self, start: int, end: int) -> tuple[str, int]:
        """Return the label of the place at [start, end), and where the text that names the place begins."""
        if not self._follows(start):
            return "", start
        self._end = end
        return self._label, self._start

    def _follows(self, start: int) -> bool:
        return 0 <= self._end <= start and _JOINED.fullmatch(self._text, self._end, start) is not None


class _Scanner:
    """Finds marks and places in the order of the text."""

    def __init__(self, place: str, label: Marks | None, *areas: Marks | None) -> None:
        """`place` is the pattern of a place. Between the marks of an area, what looks like a place is one."""
        marks: dict[str, str] = dict(zip(label, ("open", "close"), strict=True)) if label else {}
        for area in filter(None, areas):
            marks |= dict(zip(area, ("begin", "end"), strict=True))
        self._marks = marks
        self._token = re.compile("|".join([*map(re.escape, marks), f"(?P<numbers>{place})"]))

    def places(self, text: str) -> Iterator[tuple[re.Match[str], bool, _Labels]]:
        """Yield the match of each place, whether it is within an area, and the labels."""
        labels, inside = _Labels(text), False
        for match in self._token.finditer(text):
            kind = self._marks.get(match[0])
            if kind is None:
                yield match, inside, labels
            elif kind == "open":
                labels.open(match.start(), match.end())
            elif kind == "close":
                labels.close(match.start(), match.end())
            else:
                inside = kind == "begin"
                labels.skip(match.start(), match.end())


def bracketed_places(
    *,
    label: Marks | None = None,
    box: Marks | None = None,
    polygon: Marks | None = None,
    bare: Literal["double", "fractions"] | None = None,
) -> Callable[[str], list[Place]]:
    """Return a parser of four numbers in brackets, [x1, y1, x2, y2]; more of them are the corners of a polygon.

    They stand between the marks of a `box` or `polygon`, or `bare`: in two pairs of brackets, or as fractions of 1. A
    label stands before them between its own marks.
    """
    scanner = _Scanner(_GROUP, label, box, polygon)

    def is_bare(text: str, match: re.Match[str], numbers: tuple[float, ...], last_end: int) -> bool:
        if match[0][0] != "[":
            return False
        if bare == "fractions":
            return "." in match[0] and all(0 <= number <= 1 for number in numbers)
        follows = last_end >= 0 and _JOINED.fullmatch(text, last_end, match.start()) is not None
        return bare == "double" and (text[match.start() - 1 : match.start()] == "[" or follows)

    def read(text: str) -> list[Place]:
        places: list[Place] = []
        last_end = -1
        for match, inside, labels in scanner.places(text):
            numbers = _numbers_of(match)
            if len(numbers) in _COUNTS and (inside or is_bare(text, match, numbers, last_end)):
                last_end = match.end()
                written, begin = labels.before(*match.span())
                places.append(Place(_COUNTS[len(numbers)], numbers, written, (begin, last_end)))
        return places

    return read


def paired_places(
    *, label: Marks | None = None, box: Marks | None = None, polygon: Marks | None = None, label_before: bool = False
) -> Callable[[str], list[Place]]:
    """Return a parser of pairs: (x1,y1),(x2,y2) is a box, more pairs are a polygon, and one within a `box` is a point.

    A label stands before them between its own marks, or with `label_before` as the text since the last place.
    """
    scanner = _Scanner(rf"{_PAIR}(?:{GAP},{GAP}{_PAIR}){{0,{_MAX_PAIRS - 1}}}", label, box, polygon)

    def read(text: str) -> list[Place]:
        places: list[Place] = []
        last_end = 0
        for match, inside, labels in scanner.places(text):
            numbers = _numbers_of(match)
            kind: Kind = "points" if len(numbers) == 2 else _COUNTS.get(len(numbers), "polygon")
            if kind != "box" and not inside:
                continue  # numbers in parentheses may be anything
            written, begin = labels.before(*match.span())
            if label_before and not written:
                written, begin = _text_before(text, max(last_end, match.start() - _MAX_LABEL), match.start())
            last_end = match.end()
            places.append(Place(kind, numbers, written, (begin, last_end)))
        return places

    return read


def _text_before(text: str, start: int, end: int) -> tuple[str, int]:
    """Return the last line that says something in a part of the text, and where it begins."""
    line = text[start:end].rstrip().rpartition("\n")[2].strip()
    return (line, text.rindex(line, start, end)) if line else ("", end)


def _numbers_of(match: re.Match[str]) -> tuple[float, ...]:
    return tuple(map(float, _NUMBER.findall(match["numbers"])))


def token_places(text: str) -> list[Place]:
    """Read four tokens such as <loc0123> before each label; labels end with a semicolon.

    Tokens <seg012> after them, which describe a mask, are passed over.
    """
    places = []
    for match in _LOCATED.finditer(text):
        numbers = tuple(map(float, re.findall(r"\d{4}", match[1])))
        places.append(Place("box", numbers, match[2].strip(), (match.start(), match.start(2) + len(match[2].rstrip()))))
    return places


_LOCATED = re.compile(rf"((?:<loc\d{{4}}>){{4}})(?:<seg\d{{3}}>){{0,32}}{GAP}([^;<\n]{{0,{_MAX_LABEL}}})")
