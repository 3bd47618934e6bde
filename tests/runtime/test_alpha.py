"""What a transparent picture shows can be seen: ink as light as the ground, and unused alpha channels."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pocketvlm.messages import ImagePart
from pocketvlm.pictures.images import Picture, read_picture

Pixels = npt.NDArray[np.uint8]


def read(image: Image.Image | bytes) -> Picture:
    return read_picture(ImagePart(type="image", image=image), "messages.0.content.0")


def saved(form: str, **options: object) -> Callable[[Image.Image], bytes]:
    def save(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    return save


def bitmap(size: int) -> Callable[[Image.Image], bytes]:
    """A BMP of 32 bits that names its alpha, with a header of this size: 108 or 124 bytes."""

    def save(image: Image.Image) -> bytes:
        pixels = np.asarray(image)[::-1, :, [2, 1, 0, 3]].tobytes()
        header = struct.pack("<IiiHHIIiiII", size, *image.size, 1, 32, 3, len(pixels), 0, 0, 0, 0)
        header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        start = 14 + size
        return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + header.ljust(size, b"\0") + pixels

    return save


FORMS = {
    "memory": lambda image: image,
    "png": saved("PNG"),
    "webp": saved("WEBP", lossless=True, exact=True),
    "tiff": saved("TIFF"),
    "lzw tiff": saved("TIFF", compression="tiff_lzw"),
    "bmp 108": bitmap(108),
    "bmp 124": bitmap(124),
}


def ink(colour: tuple[int, int, int], ground: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """A bar of ink in the middle of nothing."""
    image = Image.new("RGBA", (32, 32), (*ground, 0))
    image.paste((*colour, 255), (8, 12, 24, 20))
    return image


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("colour", [(255, 255, 255), (240, 240, 240), (250, 245, 255)])
@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255)])
def test_light_ink_lies_on_a_dark_ground(form: str, colour: tuple[int, int, int], ground: tuple[int, int, int]) -> None:
    picture = read(FORMS[form](ink(colour, ground)))
    assert picture.pixels[16, 16].tolist() == list(colour)
    assert picture.pixels[2, 2].max() <= 128, "ground"
    assert [note for note in picture.notes if "black" in note or "grey" in note]


def test_a_light_shape_that_fills_most_of_the_picture() -> None:
    image = Image.new("RGBA", (40, 40))
    image.paste((255, 255, 255, 255), (2, 2, 38, 38))
    pixels = read(image).pixels
    assert pixels[20, 20, 0] == 255 and pixels[0, 0, 0] <= 128


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 0, 0), (255, 255, 0), (128, 128, 128), (150, 190, 255)])
def test_other_ink_lies_on_white(colour: tuple[int, int, int]) -> None:
    picture = read(ink(colour))
    assert picture.pixels[16, 16].tolist() == list(colour)
    assert picture.pixels[2, 2].tolist() == [255, 255, 255]
    assert not picture.notes


@pytest.mark.parametrize("second", [(0, 0, 0), (40, 0, 30), (128, 128, 128), (110, 140, 150)])
def test_light_ink_beside_other_ink_is_seen(second: tuple[int, int, int]) -> None:
    image = ink((255, 255, 255))
    image.paste((*second, 255), (8, 24, 24, 32))
    pixels = read(image).pixels.astype(int)
    for y in (16, 28):
        assert np.abs(pixels[y, 16] - pixels[2, 2]).max() > 60


def test_light_grey_with_alpha_and_palettes() -> None:
    grey = read(ink((255, 255, 255)).convert("LA"))
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.paste(1, (8, 12, 24, 20))
    gif = read(saved("GIF", transparency=0)(palette))
    for picture in (grey, gif):
        assert picture.pixels[16, 16, 0] == 255 and picture.pixels[2, 2, 0] <= 128


def test_a_screenshot_with_round_corners_stays_on_white() -> None:
    image = Image.new("RGBA", (200, 200), (250, 250, 250, 255))
    image.paste((0, 0, 0, 255), (50, 50, 150, 60))
    image.paste((0, 0, 0, 0), (0, 0, 8, 8))
    picture = read(image)
    assert picture.pixels[0, 0].tolist() == [255, 255, 255] and not picture.notes


def ramp(alpha: int) -> Pixels:
    """A photo, more or less, with this alpha everywhere."""
    pixels = np.full((32, 32, 4), alpha, np.uint8)
    pixels[..., 0] = np.arange(32) * 8
    pixels[..., 1] = np.arange(32)[:, None] * 8
    pixels[..., 2] = 60
    return pixels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0, 2, "one pixel"])
def test_an_alpha_channel_that_hides_everything_is_ignored(form: str, alpha: int | str) -> None:
    pixels = ramp(0 if isinstance(alpha, str) else alpha)
    if alpha == "one pixel":
        pixels[5, 5, 3] = 255
    picture = read(FORMS[form](Image.fromarray(pixels)))
    assert picture.pixels.tolist() == pixels[..., :3].tolist()
    assert len(picture.notes) == 1 and "alpha" in picture.notes[0]


def test_grey_whose_alpha_hides_everything() -> None:
    image = Image.fromarray(ramp(255)).convert("LA")
    image.putalpha(0)
    picture = read(saved("PNG")(image))
    assert picture.pixels[..., 0].tolist() == np.asarray(image)[..., 0].tolist()


def test_noise_hidden_behind_a_shape_stays_hidden() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[10:20, 10:20] = (200, 0, 0, 255)
    picture = read(Image.fromarray(pixels))
    assert picture.pixels[0, 0].tolist() == [255, 255, 255] == picture.pixels[31, 31].tolist()
    assert picture.pixels[15, 15].tolist() == [200, 0, 0]
    assert not picture.notes


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (10, 200, 30)])
def test_nothing_at_all_is_a_white_sheet(colour: tuple[int, int, int]) -> None:
    picture = read(Image.new("RGBA", (32, 32), (*colour, 0)))
    assert picture.pixels.min() == 255 and not picture.notes
