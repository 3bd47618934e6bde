"""TIFF of every kind is read rightly or refused by name; pages, previews and masks are distinguished.

tifffile writes the files, and reads them again as a check. What it cannot write without its codecs is written by hand.
"""

from __future__ import annotations

import io
import itertools
import logging
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from pocketvlm.errors import ImageError, ImageFormatError, ImageTooLargeError
from pocketvlm.messages import ImagePart
from pocketvlm.pictures.images import Picture, read_picture
from pocketvlm.pictures.tiff import Directory

Array = npt.NDArray[Any]
HEIGHT, WIDTH = 9, 19
RANDOM = np.random.default_rng(0)


def read(data: bytes, **options: Any) -> Picture:
    return read_picture(ImagePart(type="image", image=data), "messages.0.content.0", **options)


def refusal(data: bytes, kind: type[ImageError] = ImageFormatError, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read(data, **options)
    assert type(caught.value) is kind
    return str(caught.value)


def written(values: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    assert np.array_equal(tifffile.imread(io.BytesIO(file.getvalue())), values), "tifffile reads what it writes"
    return file.getvalue()


def by_hand(parts: Sequence[bytes], order: str = "<", next_at: int = 0, **tags: Any) -> bytes:
    """A picture of these strips or tiles; tags by number, as `t256=5`."""
    entries = {int(name[1:]): value for name, value in tags.items()}
    offsets = [8 + sum(map(len, parts[:number])) for number in range(len(parts))]
    tiled = 322 in entries
    entries = {324 if tiled else 273: offsets, 325 if tiled else 279: [len(part) for part in parts]} | entries
    data = b"".join(parts)
    directory, places = b"", b""
    start = 8 + len(data)
    beyond = start + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, list) else [value]
        field = struct.pack(f"{order}{len(values)}I", *values)
        if len(field) > 4:
            places += field
            field = struct.pack(f"{order}I", beyond + len(places) - len(field))
        directory += struct.pack(f"{order}HHI", tag, 4, len(values)) + field
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + data + struct.pack(f"{order}H", len(entries)) + directory + struct.pack(f"{order}I", next_at) + places


# ---- kinds of numbers and colours

DTYPES = "uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64".split()
COLOURS: dict[str, tuple[str, int, list[int]]] = {
    "grey": ("minisblack", 1, []),
    "white is zero": ("miniswhite", 1, []),
    "grey, alpha": ("minisblack", 2, [2]),
    "grey, unknown": ("minisblack", 2, [0]),
    "five bands": ("minisblack", 5, [0, 0, 0, 0]),
    "rgb": ("rgb", 3, []),
    "rgb, alpha": ("rgb", 4, [2]),
    "rgb, premultiplied": ("rgb", 4, [1]),
    "rgb, unknown": ("rgb", 4, [0]),
    "rgb, two bands": ("rgb", 5, [0, 0]),
    "cmyk": ("separated", 4, []),
    "cmyk, alpha": ("separated", 5, [2]),
}


def values_of(dtype: np.dtype[Any], samples: int) -> Array:
    """Any values, with the largest somewhere; the last sample is no alpha that hides everything."""
    shape = (HEIGHT, WIDTH, samples)
    if dtype.kind == "b":
        return RANDOM.random(shape) > 0.5
    if dtype.kind == "f":
        values = RANDOM.random(shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        values = RANDOM.integers(limits.min // 4, limits.max, shape, dtype=dtype, endpoint=True)
    values[0, 0] = 1 if dtype.kind == "f" else np.iinfo(dtype).max
    return values


def in_levels(values: Array) -> Array:
    """As 0 to 255: white is 1 for floats, else the largest number without a sign of up to 32 bits, or the largest."""
    if values.dtype.kind in "bf":
        return values.astype(float) * 255
    bits = 8 * values.dtype.itemsize
    white = 2.0**bits - 1 if bits < 32 else float(values.max())
    return values.clip(0).astype(float) * (255 / white)


def as_rgb(values: Array, photometric: str, extra: list[int]) -> Array:
    colours = values.shape[2] - len(extra)
    levels = in_levels(values[..., :colours])
    if photometric == "miniswhite":
        levels = 255 - levels
    if photometric == "separated":
        levels = (255 - levels[..., :3]) * (255 - levels[..., 3:]) / 255
    if extra and extra[0]:
        opaque = in_levels(values[..., colours : colours + 1]) / 255
        levels = levels * (opaque if extra[0] == 2 else 1) + 255 * (1 - opaque)
    return np.broadcast_to(levels, (HEIGHT, WIDTH, 3))


STRIPS, TILES, ZIP = {"rowsperstrip": 4}, {"tile": (16, 16)}, {"compression": "zlib"}
VARIANTS: list[dict[str, Any]] = [
    {"byteorder": "<", **STRIPS},
    {"byteorder": ">", **STRIPS, "bigtiff": True, "planarconfig": "separate"},
    {"byteorder": ">", **TILES, **ZIP, "planarconfig": "separate"},
    {"byteorder": "<", **TILES, **ZIP, "predictor": 2},
    {"byteorder": ">", **STRIPS, **ZIP, "predictor": 2},
    {"byteorder": "<", "compression": "lzma", "planarconfig": "separate", "predictor": 2},
]


@pytest.mark.parametrize(
    ("name", "colours"),
    [("bool", "grey"), ("bool", "white is zero"), *itertools.product(DTYPES, COLOURS)],
)
def test_numbers_and_colours(name: str, colours: str) -> None:
    photometric, samples, extra = COLOURS[colours]
    dtype = np.dtype(name)
    values = values_of(dtype, samples)
    if extra == [1]:
        values[..., :3] = np.minimum(values[..., :3], values[..., 3:])
    expected = as_rgb(values, photometric, extra)
    for variant in VARIANTS:
        options = {"planarconfig": "contig", **variant} if samples > 1 else {**variant, "planarconfig": None}
        if dtype.kind not in "iu":
            options["predictor"] = None
        if dtype.kind == "b":
            options["compression"] = None
        stored = values[..., 0] if samples == 1 else values
        if options["planarconfig"] == "separate":
            stored = np.ascontiguousarray(np.moveaxis(values, 2, 0))
        picture = read(written(stored, photometric=photometric, extrasamples=extra or None, **options))
        assert np.abs(picture.pixels - expected).max() <= 2, options
        bands = [note for note in picture.notes if "bands" in note]
        assert bool(bands) == (len(extra) > 1 or colours == "grey, unknown") or samples == 2, options


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 24, 31])
@pytest.mark.parametrize("samples", [1, 3])
def test_any_number_of_bits(bits: int, samples: int, order: str) -> None:
    """Rows begin at a byte; within them the bits follow each other, the highest first."""
    values = RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH, samples), dtype=np.uint32)
    values[0, 0] = (1 << bits) - 1
    expected = values * (255 / ((1 << bits) - 1))
    tags = {"t256": WIDTH, "t257": HEIGHT, "t262": 2 if samples == 3 else 1, "t277": samples, "t278": HEIGHT}
    for planar in range(1 + (samples > 1)):
        parts = []
        for plane in np.moveaxis(values, 2, 0) if planar else [values]:
            single = plane.reshape(HEIGHT, -1, 1) >> np.arange(bits - 1, -1, -1, dtype=np.uint32) & 1
            parts.append(np.packbits(single.reshape(HEIGHT, -1).astype(np.uint8), axis=1).tobytes())
        tags |= {"t258": [bits] * samples, "t284": 1 + planar}
        for data in (
            by_hand(parts, order, **tags, t259=1),
            by_hand([zlib.compress(part) for part in parts], order, **tags, t259=8),
        ):
            assert np.abs(read(data).pixels - expected).max() <= 1
        backwards = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
        data = by_hand([part.translate(backwards) for part in parts], order, **tags, t259=1, t266=2)
        assert np.abs(read(data).pixels - expected).max() <= 1


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_as_differences(order: str, samples: int, size: int) -> None:
    """Predictor 3: of each row first all highest bytes, then the next; as differences to `samples` bytes before."""
    values = RANDOM.random((HEIGHT, WIDTH, samples)).astype(f">f{size}")
    values[0, 0] = 1
    planes = values.view(np.uint8).reshape(HEIGHT, WIDTH * samples, size).transpose(0, 2, 1).reshape(HEIGHT, -1)
    rows = planes.copy()
    rows[:, samples:] -= planes[:, :-samples]
    tags = {
        "t256": WIDTH,
        "t257": HEIGHT,
        "t258": [8 * size] * samples,
        "t262": 2 if samples == 3 else 1,
        "t278": HEIGHT,
    }
    tags |= {"t277": samples, "t259": 8, "t317": 3, "t339": [3] * samples}
    data = by_hand([zlib.compress(rows.tobytes())], order, **tags)
    assert np.abs(read(data).pixels - values.astype(float) * 255).max() <= 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "zstd", "lzma", "tiff_adobe_deflate"])
def test_compressions_of_other_writers(compression: str) -> None:
    """The bytes of 16-bit planes, compressed by libtiff as if they were a grey picture of 8 bits."""
    planes = RANDOM.integers(0, 1 << 16, (3, HEIGHT, WIDTH), dtype=np.uint16)
    parts = []
    for plane in planes:
        file = io.BytesIO()
        Image.fromarray(plane.astype("<u2").view(np.uint8)).save(file, "TIFF", compression=compression)
        with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
            page = tiff.pages[0]
            [offset], [count] = page.dataoffsets, page.databytecounts
            number = int(page.compression)
        parts.append(file.getvalue()[offset : offset + count])
    tags = {"t256": WIDTH, "t257": HEIGHT, "t258": [16] * 3, "t262": 2, "t277": 3, "t278": HEIGHT, "t284": 2}
    pixels = read(by_hand(parts, **tags, t259=number)).pixels
    assert np.abs(pixels - np.moveaxis(planes, 0, 2) / 257).max() <= 1


@pytest.mark.parametrize("factor", [1, 256, 257])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_palettes(dtype: str, factor: int) -> None:
    """Colours have 16 bits; some writers store 8, others multiply by 256."""
    count = 1 << 8 * np.dtype(dtype).itemsize
    colours = RANDOM.integers(1, 256, (3, count)).astype(np.uint16)
    values = RANDOM.integers(0, count, (HEIGHT, WIDTH)).astype(dtype)
    picture = read(written(values, photometric="palette", colormap=colours * np.uint16(factor)))
    assert picture.pixels.tolist() == colours.T[values].tolist()


def test_the_largest_number_is_white_and_the_least_is_black() -> None:
    for dtype, white in (
        ("uint32", 2**32 - 1),
        ("uint64", 2**63),
        ("int32", 65535),
        ("float64", 1e300),
        ("float32", np.inf),
    ):
        values = np.full((4, 4), white, dtype)
        values[0] = 0
        levels = read(written(values)).pixels[..., 0]
        assert levels[1:].min() == 255 and levels[0].max() == 0, dtype
    red = np.zeros((3, 1, 4), np.uint16)
    red[0, 0] = [0, 65535, 0, 65535]
    assert read(written(red, photometric="rgb", planarconfig="separate")).pixels[0, :, 0].tolist() == [0, 255, 0, 255]


def test_premultiplied_colours_whose_alpha_is_unused() -> None:
    values = values_of(np.dtype(np.uint8), 4)
    values[..., 3] = 0
    picture = read(written(values, photometric="rgb", extrasamples=[1], planarconfig="contig"))
    assert picture.pixels.tolist() == values[..., :3].tolist() and "alpha" in picture.notes[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_orientation_is_applied_once(dtype: str, orientation: int) -> None:
    """By either reader. TIFF 6.0: where the stored first row and column belong."""
    values = np.zeros((4, 6), dtype)
    values[0, :3], values[0, 3:] = 255, 100  # the first row; its first half is brightest
    pixels = read(written(values, extratags=[(274, 3, 1, orientation, True)])).pixels[..., 0]
    expected = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert pixels.shape == ((4, 6) if orientation < 5 else (6, 4))
    assert pixels[expected[orientation]] == 255 and (pixels == 255).sum() == 3


# ---- kinds that are refused

PLAIN: dict[str, Any] = {"t256": 4, "t257": 4, "t258": 8, "t259": 1, "t262": 1, "t277": 1, "t278": 4}


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"t259": 34712}, "JPEG 2000"),
        ({"t259": 50001}, "WebP"),
        ({"t259": 50002}, "JPEG XL"),
        ({"t259": 34887}, "LERC"),
        ({"t259": 34934}, "JPEG XR"),
        ({"t259": 12345}, "12345"),
        ({"t259": 4, "t258": 8}, "fax"),
        ({"t259": 7, "t258": 16}, "JPEG"),
        ({"t262": 32803}, "camera"),
        ({"t262": 32844}, "LogL"),
        ({"t262": 9, "t277": 3}, "L*a*b*"),
        ({"t262": 8, "t277": 3, "t258": [16] * 3}, "L*a*b*"),
        ({"t262": 777}, "777"),
        ({"t262": 5, "t277": 4, "t332": 2}, "inks"),
        ({"t262": 6, "t277": 3, "t530": [2, 2]}, "subsampling"),
        ({"t339": 6, "t258": 64}, "complex"),
        ({"t339": 3, "t258": 24}, "floats of 24 bits"),
        ({"t277": 3, "t262": 2, "t258": [5, 6, 5]}, "several sizes"),
        ({"t317": 3}, "predictor 3"),
        ({"t317": 34892}, "predictor 34892"),
        ({"t32997": 4}, "volume"),
        ({"t277": 2000}, "2000 samples"),
    ],
    ids=str,
)
def test_other_kinds_are_refused_by_name(tags: dict[str, Any], says: str) -> None:
    message = refusal(by_hand([bytes(512)], **{**PLAIN, **tags}))
    assert says in message and "is not supported" in message and "damaged" not in message


def test_complex_numbers_and_volumes_of_tifffile() -> None:
    assert "complex" in refusal(written(np.ones((4, 4), np.complex64)))
    assert "volume" in refusal(written(np.ones((2, 4, 4), np.uint8), photometric="minisblack", volumetric=True))
    assert "camera" in refusal(written(np.ones((4, 4), np.uint16), photometric="cfa"))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
@pytest.mark.parametrize("dtype", ["float32", "uint64"])
def test_a_truncated_file_is_damaged(dtype: str, options: dict[str, Any]) -> None:
    data = written(values_of(np.dtype(dtype), 3), photometric="rgb", planarconfig="contig", **options)
    for percent in (1, 10, 50, 90, 98):
        assert "damaged" in refusal(data[: len(data) * percent // 100])


@pytest.mark.parametrize(
    "tags",
    [
        {"t256": 0},
        {"t258": 64, "t278": 0, "t256": 9},
        {"t322": 0, "t323": 16, "t258": 64},
        {"t322": 1 << 20, "t323": 1 << 20, "t258": 64},
        {"t258": 64, "t257": 90},
        {"t258": 64, "t278": 1},
        {"t262": 3},
    ],
    ids=str,
)
def test_files_that_contradict_themselves(tags: dict[str, Any]) -> None:
    message = refusal(by_hand([bytes(8)], **{**PLAIN, **tags}))
    assert "damaged" in message or "no pixels" in message


# ---- limits


def test_the_size_is_checked_before_anything_is_decoded() -> None:
    big = {**PLAIN, "t256": 30000, "t257": 30000, "t258": 64}
    assert "900.0 megapixels" in refusal(by_hand([b"x"], **big), ImageTooLargeError)
    data = written(values_of(np.dtype(np.float64), 1)[..., 0])
    assert read(data, max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)
    assert "19x9" in refusal(data, ImageTooLargeError, max_pixels=WIDTH * HEIGHT - 1)


def test_what_compression_may_grow_to_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of few pixels with many samples, or with large tiles."""
    tiles = by_hand([zlib.compress(bytes(9))], **{**PLAIN, "t258": 64, "t259": 8, "t322": 5000, "t323": 5000})
    assert "too large for the picture" in refusal(tiles)
    column = by_hand([zlib.compress(bytes(9))] * 4, **{**PLAIN, "t259": 8, "t322": 1, "t323": 1 << 16, "t339": 2})
    assert "too large for the picture" in refusal(column)
    data = by_hand([zlib.compress(bytes(8 * 1000 * 16))], **{**PLAIN, "t258": 64, "t277": 1000, "t259": 8})
    assert read(data).size == (4, 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    assert "MAX_IMAGE_PIXELS" in refusal(data, ImageTooLargeError)


@pytest.mark.parametrize("kind", [{}, {"t339": 2}], ids=["by Pillow", "by ours"])
@pytest.mark.parametrize("sides", [{"t256": 1 << 16, "t257": 1}, {"t256": 1, "t257": 1 << 16}])
def test_a_side_has_a_limit_before_decoding(sides: dict[str, int], kind: dict[str, int]) -> None:
    data = by_hand([b"1234"], **{**PLAIN, **kind, **sides, "t278": sides["t257"]})
    assert "a side has at most 65,535 pixels" in refusal(data, ImageTooLargeError)


@pytest.mark.parametrize("counts", [[1 << 20] * 2000, [0] * 2000, []], ids=["whole", "zero", "none"])
def test_strips_that_are_the_whole_file_take_no_memory(counts: list[int]) -> None:
    strip = zlib.compress(bytes([3]))
    options = {**PLAIN, "t256": 1, "t257": 2000, "t259": 8, "t339": 2, "t278": 1}
    data = by_hand([strip + bytes(1 << 20)], **options, t273=[8] * 2000, t279=counts or [1])
    tracemalloc.start()
    picture = read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert picture.size == (1, 2000)
    assert peak < 1 << 26


def test_single_bits_are_unpacked_a_few_rows_at_a_time() -> None:
    rows = [zlib.compress(bytes(3 * 2000 // 8 * 100))] * 20
    data = by_hand(
        rows, **{**PLAIN, "t256": 2000, "t257": 2000, "t258": 1, "t259": 8, "t262": 2, "t277": 3, "t278": 100}
    )
    tracemalloc.start()
    read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2000 * 2000


# ---- pages


def file_of(*pages: tuple[Array, int]) -> bytes:
    """Pages with their NewSubfileType: 1 for a preview, 2 for a page, 4 for a mask."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        for values, kind in pages:
            photometric = "mask" if kind & 4 else "minisblack"
            tiff.write(values, photometric=photometric, metadata=None, subfiletype=kind)
    return file.getvalue()


FULL, OTHER, SMALL = np.full((20, 30), 200, np.uint8), np.full((20, 30), 90, np.uint8), np.full((5, 8), 7, np.uint8)
MASK = np.ones((20, 30), bool)


@pytest.mark.parametrize(
    ("pages", "level", "count"),
    [
        ([(FULL, 0)], 200, 1),
        ([(FULL, 0), (OTHER, 0)], 200, 2),
        ([(FULL, 2), (OTHER, 2), (OTHER, 2)], 200, 3),
        ([(SMALL, 1), (FULL, 0)], 200, 1),
        ([(SMALL.astype(np.float64), 1), (FULL, 0), (OTHER, 0)], 200, 2),
        ([(SMALL, 1), (FULL.astype(np.float32) / 255, 0)], 200, 1),
        ([(FULL, 0), (MASK, 4), (SMALL, 1), (MASK[:5, :8], 5)], 200, 1),
        ([(MASK, 4), (FULL, 0), (OTHER, 2)], 200, 2),
        ([(SMALL, 1)], 7, 1),
    ],
)
def test_pages_previews_and_masks(pages: list[tuple[Array, int]], level: int, count: int) -> None:
    picture = read(file_of(*pages))
    assert picture.pixels.min() == picture.pixels.max() == level
    assert picture.pages == count
    assert [str(count) in note for note in picture.notes if "was seen" in note] == [True] * (count > 1)
    assert any("preview" in note for note in picture.notes) == (level == 7)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_lzw", "jpeg"])
def test_scans_of_several_pages(compression: str) -> None:
    mode = "1" if "group" in compression else "L"
    file = io.BytesIO()
    blank = Image.new(mode, (40, 30), 255)
    page = blank.copy()
    page.paste(0, (0, 0, 20, 30))
    page.save(file, "TIFF", compression=compression, save_all=True, append_images=[blank, blank])
    picture = read(file.getvalue())
    assert picture.pages == 3 and picture.pixels[5, 5, 0] < 5 and picture.pixels[5, 35, 0] > 250


def test_the_first_of_several_rationals_in_bigtiff() -> None:
    """A field of 8 bytes holds one; of more, it is their place in the file."""
    values = struct.pack("<4I", 204, 1, 98, 1)
    for count, field in ((1, values[:8]), (2, struct.pack("<Q", 16))):
        entries = {282: (5, count, field)}
        assert Directory(io.BytesIO(bytes(16) + values), "<", 0, entries).rational(282) == 204


def test_a_chain_without_an_end() -> None:
    """A directory that names itself, and more of them than anyone has pages."""
    looped = by_hand([bytes(16)], **PLAIN)
    start = struct.unpack("<I", looped[4:8])[0]
    assert read(by_hand([bytes(16)], next_at=start, **PLAIN)).pages == 1
    single = looped[start:-4]
    assert len(single) == 2 + 12 * 9
    chain = bytearray(looped[:start])
    for _ in range(30_000):
        chain += single + struct.pack("<I", len(chain) + len(single) + 4)
    started = time.process_time()
    assert read(bytes(chain)).pages > 1000
    assert time.process_time() - started < 5


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """tifffile logs what it finds odd."""
    logging.getLogger("tifffile").disabled = True
    yield
    logging.getLogger("tifffile").disabled = False
