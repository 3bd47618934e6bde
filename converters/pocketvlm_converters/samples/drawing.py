"""Draw pictures with integer arithmetic only, without fonts or random streams: each machine makes the same pixels.

All are uint8 [height, width, 3]; sizes are (width, height) in pixels, colours RGB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
_Grid = npt.NDArray[np.int64]

WHITE, BLACK, INK = (255, 255, 255), (0, 0, 0), (40, 40, 48)
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "blue": (38, 84, 200),
    "green": (40, 150, 70),
    "yellow": (240, 200, 40),
    "orange": (240, 130, 30),
    "purple": (130, 60, 170),
    "black": (20, 20, 20),
    "grey": (128, 128, 128),
}
# A letter is five rows of three pixels; each row is an octal digit.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-+=/%()!?$'\"*_<>{}[]|;"
_ROWS = (
    "25755 65656 34443 65556 74647 74644 34553 55755 72227 11152 55655 44447 57755 75555 25552 65644 25563 65655 34216 "
    "72222 55557 55552 55775 55255 55222 71247 75557 26227 61247 61216 55711 74616 34757 71122 75757 75716 00002 00024 "
    "02020 00700 02720 07070 11244 51245 24442 21112 22202 61202 36736 22000 55000 52725 00007 12421 42124 32623 62326 "
    "64446 31113 22222 02024"
)
_GLYPHS = dict(zip(_LETTERS, _ROWS.split(), strict=True))
_SPACE = "00000"  # also drawn for letters that are not listed
_MASK = 0xFFFFFFFF


def blank(size: tuple[int, int], colour: Colour = WHITE) -> RGB:
    """Return a picture of one colour."""
    return np.full((size[1], size[0], 3), colour, np.uint8)


def noise(size: tuple[int, int], seed: int) -> RGB:
    """Return noise: every value is independent."""
    y, x = _grid(size)
    return np.stack([_hash(x, y, 3 * seed + channel) & 255 for channel in range(3)], axis=-1).astype(np.uint8)


def texture(size: tuple[int, int], seed: int, cell: int = 32) -> RGB:
    """Return clouds: smooth noise in cells of `cell` pixels, plus ever finer and weaker noise."""
    channels = [_clouds(size, 3 * seed + channel, cell) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def landscape(size: tuple[int, int], seed: int) -> RGB:
    """Return something like a photograph: a sky with clouds, the sun, and two rows of hills with grain."""
    width, height = size
    y, x = _grid(size)
    tint = [int(_hash(np.array(0), np.array(channel), seed)) % 60 for channel in range(3)]
    light = 70 * y // height
    sky = np.stack([90 + tint[0] + light, 130 + tint[1] + light // 2, 190 + tint[2] // 2 - light // 2], axis=-1)
    picture = sky + (_clouds(size, seed, max(8, width // 6))[..., None] - 128) // 4
    sun_x, sun_y, radius = width * (1 + seed % 4) // 5, height // 5, max(3, min(size) // 12)
    picture[(x - sun_x) ** 2 + (y - sun_y) ** 2 <= radius**2] = (255, 240, 190)
    for number, (base, colour) in enumerate(((6, (70, 96, 84)), (8, (52, 74, 40)))):
        ridge = _clouds((width, 1), seed + 17 * number + 1, max(8, width // 4))[0]
        ground = y >= height * base // 10 - (ridge - 128) * height // 600
        grain = _clouds(size, seed + 31 + number, 6)[..., None] - 128
        picture = np.where(ground[..., None], np.array(colour) + grain // 3, picture)
    return picture.clip(0, 255).astype(np.uint8)


def page(size: tuple[int, int], lines: Sequence[str], scale: int = 2, ink: Colour = INK, paper: Colour = WHITE) -> RGB:
    """Return lines of text in capitals. A letter has 3x5 pixels times `scale`; text that does not fit is cut off."""
    picture = blank(size, paper)
    for number, line in enumerate(lines):
        write(picture, line, (4 * scale, (4 + 8 * number) * scale), scale, ink)
    return picture


def chart(size: tuple[int, int], bars: Sequence[tuple[str, int]], title: str) -> RGB:
    """Return a bar chart with names below the bars and values, 0 to 100, above them."""
    picture = blank(size)
    width, height = size
    write(picture, title, (8, 6), 2, INK)
    floor, step = height - 24, (width - 24) // len(bars)
    picture[floor : floor + 2, 12 : width - 12] = INK
    for number, (name, value) in enumerate(bars):
        left, top = 16 + step * number, floor - (floor - 44) * value // 100
        picture[top:floor, left : left + step * 2 // 3] = list(COLOURS.values())[number % len(COLOURS)]
        write(picture, str(value), (left, top - 14), 2, INK)
        write(picture, name, (left, floor + 8), 2, INK)
    return picture


def shapes(size: tuple[int, int], drawn: Sequence[tuple[str, str, int, int, int]], paper: Colour = WHITE) -> RGB:
    """Return a picture of shapes, each (kind, colour, centre x, centre y, radius), the last on top.

    Kinds are circle, square, triangle, ring and cross.
    """
    picture = blank(size, paper)
    y, x = _grid(size)
    for kind, colour, centre_x, centre_y, radius in drawn:
        dx, dy = x - centre_x, y - centre_y
        inside = {
            "circle": dx**2 + dy**2 <= radius**2,
            "square": (abs(dx) <= radius) & (abs(dy) <= radius),
            "triangle": (abs(dy) <= radius) & (2 * abs(dx) <= dy + radius),
            "ring": (dx**2 + dy**2 <= radius**2) & (4 * (dx**2 + dy**2) >= radius**2),
            "cross": ((3 * abs(dx) <= radius) | (3 * abs(dy) <= radius)) & (abs(dx) <= radius) & (abs(dy) <= radius),
        }[kind]
        picture[inside] = COLOURS[colour]
    return picture


def stripes(size: tuple[int, int], width: int, one: Colour, other: Colour, *, check: bool = False) -> RGB:
    """Return diagonal stripes of `width` pixels, or a chessboard with `check`."""
    y, x = _grid(size)
    odd = (x // width + y // width) % 2 if check else (x + y) // width % 2
    return np.where(odd[..., None] == 1, np.array(one), np.array(other)).astype(np.uint8)


def write(picture: RGB, text: str, at: tuple[int, int], scale: int, colour: Colour) -> None:
    """Draw one line into `picture` with its top left corner at (x, y)."""
    rows = [[int(_GLYPHS.get(letter, _SPACE)[row], 8) for letter in text.upper()] for row in range(5)]
    bits = np.array([[bit for glyph in row for bit in (glyph >> 2 & 1, glyph >> 1 & 1, glyph & 1, 0)] for row in rows])
    pixels = bits.repeat(scale, axis=0).repeat(scale, axis=1) == 1
    place = picture[at[1] : at[1] + pixels.shape[0], at[0] : at[0] + pixels.shape[1]]
    place[pixels[: place.shape[0], : place.shape[1]]] = colour


def _grid(size: tuple[int, int]) -> tuple[_Grid, _Grid]:
    y, x = np.indices((size[1], size[0]), dtype=np.int64)
    return y, x


def _hash(x: _Grid, y: _Grid, seed: int) -> _Grid:
    """Return 32 well mixed bits for each pair. x and y must be below 2**16, so that int64 does not overflow."""
    value = (x * 374761393 + y * 668265263 + seed * 974634541 + 1) & _MASK
    value = ((value ^ (value >> 15)) * 739982445) & _MASK
    value = ((value ^ (value >> 12)) * 695872825) & _MASK
    return value ^ (value >> 15)


def _clouds(size: tuple[int, int], seed: int, cell: int) -> _Grid:
    """Return values from 0 to 255, [height, width]."""
    total: _Grid = np.zeros((size[1], size[0]), np.int64)
    share = 128
    while cell >= 2 and share >= 8:
        total += share * _smooth(size, seed, cell)
        cell, share, seed = cell // 2, share // 2, seed + 101
    return total * 255 // max(1, int(total.max()))


def _smooth(size: tuple[int, int], seed: int, cell: int) -> _Grid:
    """Return random values at the corners of cells, interpolated between them, from 0 to 255."""
    y, x = _grid(size)
    row, column = y // cell, x // cell
    down, right = y - row * cell, x - column * cell

    def corner(dx: int, dy: int) -> _Grid:
        return _hash(column + dx, row + dy, seed) & 255

    above = corner(0, 0) * (cell - right) + corner(1, 0) * right
    below = corner(0, 1) * (cell - right) + corner(1, 1) * right
    smooth: _Grid = (above * (cell - down) + below * down) // (cell * cell)
    return smooth
