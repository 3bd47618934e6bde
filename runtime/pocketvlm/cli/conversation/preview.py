"""A small picture in the terminal: by its graphics protocol if it is known to have one, or else with half blocks."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style

_COLUMNS, _ROWS = 48, 12  # at most
_CELL = (10, 20)  # pixels of a character, about
_KITTY_CHUNK = 4096  # characters of a sequence
_SIXEL_COLOURS = 128

Cells = tuple[int, int]  # columns, rows


def preview(image: Image.Image, console: Console) -> str | None:
    """Return what shows a picture in this terminal; None where it cannot."""
    columns, rows = cells_of(image.size, (min(_COLUMNS, console.width - 1), _ROWS))
    draw = _protocol(os.environ)
    if draw is not None:
        return draw(image, (columns, rows))
    if console.no_color or console.color_system not in ("truecolor", "256"):
        return None
    return _half_blocks(image, (columns, rows), console)


def cells_of(size: tuple[int, int], most: Cells) -> Cells:
    """Return how many characters a picture takes in its proportions; a character is twice as high as it is wide."""
    width, height = size
    scale = min(most[0] / width, 2 * most[1] / height)
    return max(1, min(most[0], round(width * scale))), max(1, min(most[1], round(height * scale / 2)))


def _protocol(environment: Mapping[str, str]) -> Callable[[Image.Image, Cells], str] | None:
    """Return how to draw in the terminal that the environment names. None: it has no graphics, or is not known.

    A terminal is not asked: one that does not know the question would print it. tmux and screen pass no graphics on.
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return None
    if "kitty" in term or "ghostty" in term or environment.get("KITTY_WINDOW_ID") or program == "ghostty":
        return kitty
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return iterm
    if re.match(r"(foot|mlterm|contour|yaft)\b", term) or "sixel" in term:
        return sixel
    return None


def kitty(image: Image.Image, cells: Cells) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol/; q=2 asks for no reply."""
    data = _png(image, cells)
    chunks = [data[at : at + _KITTY_CHUNK] for at in range(0, len(data), _KITTY_CHUNK)]
    keys = [f"a=T,f=100,q=2,c={cells[0]},r={cells[1]},", *[""] * (len(chunks) - 1)]
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(f"\x1b_G{k}m={m};{c}\x1b\\" for k, m, c in zip(keys, more, chunks, strict=True)) + "\n"


def iterm(image: Image.Image, cells: Cells) -> str:
    """https://iterm2.com/documentation-images.html"""
    data = _png(image, cells)
    return f"\x1b]1337;File=inline=1;width={cells[0]};height={cells[1]};preserveAspectRatio=0:{data}\x07\n"


def sixel(image: Image.Image, cells: Cells) -> str:
    """DEC's sixels: of each band of six rows, one line of characters for each colour. VT330 programmer reference."""
    small = image.resize((cells[0] * _CELL[0], cells[1] * _CELL[1]), Image.Resampling.LANCZOS)
    paletted = small.quantize(_SIXEL_COLOURS)
    palette = (paletted.getpalette() or [])[: 3 * _SIXEL_COLOURS]
    pixels = np.asarray(paletted)
    parts = [f'\x1bPq"1;1;{pixels.shape[1]};{pixels.shape[0]}']
    for number, rgb in enumerate(zip(*[iter(palette)] * 3, strict=True)):
        red, green, blue = (round(value * 100 / 255) for value in rgb)
        parts.append(f"#{number};2;{red};{green};{blue}")
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        lines = [f"#{colour}{''.join(_sixels(band == colour))}" for colour in np.unique(band)]
        parts.append("$".join(lines) + "-")
    return "".join(parts) + "\x1b\\\n"


def _sixels(mask: np.ndarray) -> Iterator[str]:
    """Yield runs of the characters for one colour: each is six pixels of a column, as bits from the top."""
    bits = (mask * (1 << np.arange(len(mask)))[:, None]).sum(axis=0)
    borders = np.flatnonzero(np.diff(bits)) + 1
    for run in np.split(bits, borders):
        yield f"!{len(run)}{chr(63 + run[0])}" if len(run) > 3 else chr(63 + run[0]) * len(run)


def _half_blocks(image: Image.Image, cells: Cells, console: Console) -> str:
    """Two pixels a character: the upper half has the colour of the text, the lower half that of the background."""
    columns, rows = cells
    pixels = np.asarray(image.resize((columns, 2 * rows), Image.Resampling.LANCZOS)).tolist()
    with console.capture() as captured:
        for top, bottom in zip(pixels[::2], pixels[1::2], strict=True):
            styles = (
                Style(color=Color.from_rgb(*up), bgcolor=Color.from_rgb(*down))
                for up, down in zip(top, bottom, strict=True)
            )
            console.print(_Line([Segment("▀", style) for style in styles]))
    return captured.get()


class _Line:
    def __init__(self, segments: list[Segment]) -> None:
        self._segments = segments

    def __rich_console__(self, *_: object) -> Iterator[Segment]:
        yield from self._segments
        yield Segment.line()


def _png(image: Image.Image, cells: Cells) -> str:
    """Return a PNG file as base64 text, no larger than twice what its cells may have."""
    most = (cells[0] * _CELL[0] * 2, cells[1] * _CELL[1] * 2)
    if image.width > most[0] or image.height > most[1]:
        image = image.resize(most, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
