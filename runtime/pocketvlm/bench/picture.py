"""Draw a report: bars of the time to the first token, speeds below. Drawn at twice the size, for smooth edges."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, log10

from PIL import Image, ImageDraw, ImageFont

from pocketvlm import __version__
from pocketvlm.bench.measure import Case, Report, Spread

_WIDTH, _MARGIN, _LABELS, _VALUES = 1000, 40, 220, 110
_BAR, _GAP = 22, 12
_PAPER, _INK, _SOFT, _LINE = "#fbfaf8", "#1f2430", "#6b7280", "#e3e0da"
_ENCODER, _REST, _KNOWN = "#2f6db5", "#a9c9ec", "#e08a3c"
_SCALE = 2
_ROWS = (
    ("first", "new picture"),
    ("second", "next question"),
    ("again", "in a new chat"),
    ("moved", "after other text"),
)
_HEAD, _BARS, _FOOT = 36, len(_ROWS) * (_BAR + _GAP), 34
_CASE = _HEAD + _BARS + _FOOT


def draw(report: Report, machine: str) -> Image.Image:
    """Return an RGB picture of 1000 pixels width; every case adds to its height."""
    top, foot = 150, 62
    height = top + len(report.cases) * _CASE + foot
    pen = _Pen(height)
    pen.text(_MARGIN, 34, report.model, 28)
    pen.text(_MARGIN, 76, f"{machine} · encoder {report.vision} · median and spread of {report.repeat}", 14, _SOFT)
    pen.text(_MARGIN, 110, "time to the first token", 14)
    at: float = _MARGIN + _LABELS
    for colour, words in ((_ENCODER, "encoder"), (_REST, "all else"), (_KNOWN, "a picture seen before")):
        pen.box(at, 112, at + 12, 124, colour)
        at += 18 + pen.text(at + 18, 110, words, 14, _SOFT) + 24
    longest = 1.05 * max(getattr(case, name).high for case in report.cases for name, _ in _ROWS)
    scale = (_WIDTH - _MARGIN - _LABELS - _VALUES - _MARGIN) / longest
    ticks = [(value, _MARGIN + _LABELS + value * scale) for value in _ticks(longest)]
    for number, case in enumerate(report.cases):
        y = top + number * _CASE
        for _, x in ticks:
            pen.line(x, y + _HEAD - 5, x, y + _HEAD + _BARS - _GAP + 5)
        _draw_case(pen, case, y, scale)
    for value, x in ticks:
        pen.text(x, height - foot, _time(value), 12, _SOFT, middle=True)
    memory = report.memory and f" · peak memory {report.memory.peak / 1e6:,.0f} MB, mapped files included"
    pen.text(_MARGIN, height - 32, f"pocketvlm {__version__}{memory or ''}", 12, _SOFT)
    return pen.done()


def _draw_case(pen: _Pen, case: Case, y: float, scale: float) -> None:
    name = "{}x{}".format(*case.size)
    name = name if case.picture == name else f"{case.picture}, {name}"
    tiles = f"{case.tiles} tile{'s' * (case.tiles != 1)}, {case.image_tokens:,} tokens"
    moved = pen.text(_MARGIN, y, f"{name}, detail {case.detail}", 17)
    pen.text(_MARGIN + moved + 14, y + 3, tiles, 14, _SOFT)
    y += _HEAD
    left = _MARGIN + _LABELS
    for field, words in _ROWS:
        spread: Spread = getattr(case, field)
        end = left + max(3.0, spread.median * scale)
        pen.text(_MARGIN, y + 2, words, 14)
        pen.box(left, y, end, y + _BAR, _REST if field == "first" else _KNOWN)
        if field == "first":
            pen.box(left, y, left + min(case.encode.median, spread.median) * scale, y + _BAR, _ENCODER)
        low, high = left + spread.low * scale, left + spread.high * scale
        if high - low > 3:
            pen.line(low, y + _BAR / 2, high, y + _BAR / 2, _INK)
        pen.text(max(end, high) + 8, y + 2, _time(spread.median), 14)
        y += _BAR + _GAP
    each = _time(case.encode.median / max(1, case.tiles))
    prefill, decode = (f"{speed.median:,.0f} tokens/s" for speed in (case.prefill, case.decode))
    pen.text(left + 8, y - 2, f"encoder {each} per tile · prefill {prefill} · decode {decode}", 13, _SOFT)


def _ticks(longest: float) -> Iterator[float]:
    """Yield four to eight round numbers from 0."""
    unit = 10 ** floor(log10(longest))
    step = next(unit * part for part in (0.2, 0.5, 1, 2) if longest < 8 * unit * part)
    return (step * number for number in range(int(longest / step) + 1))


def _time(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds else "0"


class _Pen:
    """Draws in the pixels of the finished picture."""

    def __init__(self, height: int) -> None:
        self._image = Image.new("RGB", (_SCALE * _WIDTH, _SCALE * height), _PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, words: str, size: int, colour: str = _INK, *, middle: bool = False) -> float:
        """Draw text, cut short at the right edge. Return its width."""
        font = ImageFont.load_default(_SCALE * size)
        shown = words
        while font.getlength(shown) > _SCALE * (_WIDTH - _MARGIN / 2 - x) and len(words) > 1:
            words = words[:-1]
            shown = words + "…"
        self._draw.text((_SCALE * x, _SCALE * y), shown, colour, font, anchor="ma" if middle else "la")
        return float(font.getlength(shown)) / _SCALE

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self._draw.rounded_rectangle([_SCALE * v for v in (left, top, right, bottom)], _SCALE * 3, colour)

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: str = _LINE) -> None:
        self._draw.line([_SCALE * v for v in (x, y, to_x, to_y)], colour, _SCALE)

    def done(self) -> Image.Image:
        return self._image.resize((self._image.width // _SCALE, self._image.height // _SCALE), Image.Resampling.LANCZOS)
