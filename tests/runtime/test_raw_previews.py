"""Previews in raw files of cameras: the largest JPEG is read, upright and within the limits; exiftool agrees.

The files are made from the structure of TIFF as cameras write it: no picture of a camera is needed.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pocketvlm.errors import ImageError, ImageFormatError, ImageTooLargeError
from pocketvlm.messages import ImagePart
from pocketvlm.pictures.images import Picture, read_picture

ASCII, SHORT, LONG, BYTE = 2, 3, 4, 1
SENSOR, YCBCR, RGB = 32803, 6, 2
LARGE, SMALL = (96, 64), (24, 16)


def read(data: bytes, **options: Any) -> Picture:
    return read_picture(ImagePart(type="image", image=data), "messages.0.content.0", **options)


def refusal(data: bytes, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(data, **options)
    return caught.value


def jpeg(size: tuple[int, int], colour: str, **options: Any) -> bytes:
    """A picture of one colour with a white block in its upper left quarter."""
    picture = Image.new("RGB", size, colour)
    picture.paste("white", (0, 0, size[0] // 2, size[1] // 2))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def lossless_jpeg(size: tuple[int, int]) -> bytes:
    """The header of JPEG as raw data has it: a frame of kind 0xC3, 14 bits a sample."""
    return b"\xff\xd8\xff\xc3" + struct.pack(">HBHHB3B", 11, 14, size[1], size[0], 1, 1, 0x11, 0) + b"\xff\xd9"


@dataclass
class Directory:
    """Tags as (type, values); `data` is what `place` and `length` (tags) point at. `subs` are its subdirectories."""

    tags: dict[int, tuple[int, Sequence[int] | bytes]]
    data: bytes = b""
    place: int = 0
    length: int = 0
    subs: list[Directory] = field(default_factory=list)


def raw_file(chain: list[Directory], order: str = "<", head: bytes = b"") -> bytes:
    """Write directories one after the other, each with its data and its values before it."""
    file = io.BytesIO()
    file.write((b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 0) + head)
    codes = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I"}

    def append(data: bytes) -> int:
        start = file.seek(0, io.SEEK_END)
        file.write(data + b"\0" * (len(data) % 2))
        return start

    def write(directory: Directory, following: int) -> int:
        tags = dict(directory.tags)
        if directory.place:
            tags[directory.place] = (LONG, [append(directory.data)])
            tags[directory.length] = (LONG, [len(directory.data)])
        if directory.subs:
            tags[330] = (LONG, [write(sub, 0) for sub in directory.subs])
        entries = b""
        for tag, (kind, values) in sorted(tags.items()):
            packed = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
            value = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", append(packed))
            entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + value
        return append(struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", following))

    following = 0
    for directory in reversed(chain):
        following = write(directory, following)
    file.seek(4)
    file.write(struct.pack(f"{order}I", following))
    return file.getvalue()


def picture_tags(size: tuple[int, int], compression: int, colours: int | None, **more: Any) -> dict[int, Any]:
    tags: dict[int, Any] = {256: (LONG, [size[0]]), 257: (LONG, [size[1]]), 259: (SHORT, [compression])}
    if colours is not None:
        tags[262] = (SHORT, [colours])
    return tags | {int(name[1:]): value for name, value in more.items()}


def camera(make: bytes, model: bytes, orientation: int) -> dict[str, Any]:
    return {
        "t271": (ASCII, make + b"\0"),
        "t272": (ASCII, model + b"\0"),
        "t274": (SHORT, [orientation]),
    }


def sensor(compression: int = 1) -> Directory:
    tags = picture_tags((120, 80), compression, SENSOR, t254=(LONG, [0]), t258=(SHORT, [16]), t277=(SHORT, [1]))
    return Directory(tags, b"\0" * 64, 273, 279)


def cr2(large: bytes, orientation: int = 1) -> bytes:
    """Canon: the preview is the strip of the first directory; raw data is lossless JPEG without a colour space."""
    first = Directory(picture_tags(LARGE, 6, None, **camera(b"Canon", b"Canon EOS 1", orientation)), large, 273, 279)
    second = Directory({}, jpeg(SMALL, "green"), 513, 514)
    third = Directory(picture_tags((30, 20), 1, RGB), b"\0" * 1800, 273, 279)
    fourth = Directory({259: (SHORT, [6])}, lossless_jpeg((400, 300)), 273, 279)
    return raw_file([first, second, third, fourth], head=b"CR\2\0\0\0\0\0")


def nef(large: bytes, orientation: int = 1) -> bytes:
    """Nikon: a small uncompressed picture first, the preview and the raw data in subdirectories."""
    tags = picture_tags((16, 12), 1, RGB, t254=(LONG, [1]), t258=(SHORT, [8, 8, 8]), t277=(SHORT, [3]))
    tags |= {int(name[1:]): value for name, value in camera(b"NIKON CORPORATION", b"NIKON D1", orientation).items()}
    preview = Directory({254: (LONG, [1]), 259: (SHORT, [6])}, large, 513, 514)
    return raw_file([Directory(tags, b"\x40" * 576, 273, 279, [preview, sensor(34713)])], ">")


def arw(large: bytes, orientation: int = 1) -> bytes:
    """Sony: the preview is that of the first directory, a smaller one that of the second."""
    tags = picture_tags(LARGE, 6, YCBCR, t254=(LONG, [1]), **camera(b"SONY", b"ILCE-1", orientation))
    second = Directory(picture_tags(SMALL, 6, YCBCR, t254=(LONG, [1])), jpeg(SMALL, "green"), 513, 514)
    return raw_file([Directory(tags, large, 513, 514, [sensor(32767)]), second])


def dng(large: bytes, orientation: int = 1) -> bytes:
    """Adobe: previews are strips of JPEG in subdirectories; the raw data may be lossless JPEG."""
    tags = picture_tags((16, 12), 1, RGB, t254=(LONG, [1]), t258=(SHORT, [8, 8, 8]), t277=(SHORT, [3]))
    tags |= {int(name[1:]): value for name, value in camera(b"Maker", b"Phone", orientation).items()}
    tags[50706] = (BYTE, [1, 4, 0, 0])
    raw = Directory(picture_tags((400, 300), 7, SENSOR, t254=(LONG, [0])), lossless_jpeg((400, 300)), 273, 279)
    middle = Directory(picture_tags(SMALL, 7, YCBCR, t254=(LONG, [1])), jpeg(SMALL, "green"), 273, 279)
    preview = Directory(picture_tags(LARGE, 7, YCBCR, t254=(LONG, [1])), large, 273, 279)
    return raw_file([Directory(tags, b"\x40" * 576, 273, 279, [raw, middle, preview])])


KINDS = {"cr2": cr2, "nef": nef, "arw": arw, "dng": dng}
EXIFTOOL_TAGS = {"cr2": "PreviewImage", "nef": "JpgFromRaw", "arw": "PreviewImage", "dng": "JpgFromRaw"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_jpeg_is_read(kind: str) -> None:
    large = jpeg(LARGE, "red")
    picture = read(KINDS[kind](large))
    assert picture.size == LARGE and picture.pages == 1
    assert np.array_equal(picture.pixels, np.asarray(Image.open(io.BytesIO(large))))
    assert picture.notes == ("the preview of 96x64 pixels in a camera's raw file was read",)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_upright(kind: str) -> None:
    """The first directory says how the camera was held; Pillow turns the reference."""
    turned = Image.open(io.BytesIO(jpeg(LARGE, "red"))).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(read(KINDS[kind](jpeg(LARGE, "red"), 6)).pixels, np.asarray(turned))
    exif = Image.Exif()
    exif[274] = 3  # of the JPEG picture itself
    half = Image.open(io.BytesIO(jpeg(LARGE, "red"))).transpose(Image.Transpose.ROTATE_180)
    assert np.array_equal(read(KINDS[kind](jpeg(LARGE, "red", exif=exif), 6)).pixels, np.asarray(half))


@pytest.mark.parametrize("kind", KINDS)
def test_exiftool_extracts_the_same(kind: str, tmp_path: Path) -> None:
    exiftool = shutil.which("exiftool")
    if exiftool is None:
        pytest.skip("needs exiftool")
    large = jpeg(LARGE, "red")
    path = tmp_path / f"photo.{kind}"
    path.write_bytes(KINDS[kind](large))
    named = subprocess.run(
        [exiftool, "-b", f"-{EXIFTOOL_TAGS[kind]}", path], capture_output=True, timeout=60, check=True
    ).stdout
    assert named == large
    kinds = subprocess.run([exiftool, "-s3", "-FileType", path], capture_output=True, timeout=60, check=True).stdout
    assert kinds.decode().strip().lower() == kind


@pytest.mark.parametrize("kind", KINDS)
def test_tifffile_finds_the_same_place(kind: str) -> None:
    large = jpeg(LARGE, "red")
    data = KINDS[kind](large)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [page for first in file.pages for page in (first, *(first.pages or ()))]
    values = [
        (page.tags[place].value, page.tags[length].value)
        for page in pages
        for place, length in ((513, 514), (273, 279))
        if place in page.tags
    ]
    places = [(start[0], count[0]) if isinstance(start, tuple) else (start, count) for start, count in values]
    assert large in [data[start : start + count] for start, count in places]


def test_a_preview_of_one_tile() -> None:
    tile = Directory(picture_tags(LARGE, 7, YCBCR, t254=(LONG, [1])), jpeg(LARGE, "red"), 324, 325)
    assert read(raw_file([sensor(), tile])).size == LARGE


@pytest.mark.parametrize("kind", KINDS)
def test_limits_are_those_of_pictures(kind: str) -> None:
    error = refusal(KINDS[kind](jpeg(LARGE, "red")), max_pixels=96 * 64 - 1)
    assert isinstance(error, ImageTooLargeError) and "96x64" in error.message


def test_a_place_outside_of_the_file_is_not_read() -> None:
    """The length of the largest preview goes beyond the end: the next one counts."""
    data = cr2(jpeg(LARGE, "red"))
    cut = data.replace(struct.pack("<I", len(jpeg(LARGE, "red"))), struct.pack("<I", len(data)))
    assert cut != data
    picture = read(cut)
    assert picture.size == SMALL


def test_without_a_preview_it_is_refused_by_name() -> None:
    tags = sensor().tags | {50706: (BYTE, [1, 4, 0, 0])}
    error = refusal(raw_file([Directory(tags, b"\0" * 64, 273, 279)]))
    assert isinstance(error, ImageFormatError) and "raw data of a camera is not supported" in error.message


def test_a_preview_that_is_no_picture_is_passed_over() -> None:
    for broken in (b"", b"\xff\xd8\xff", jpeg(LARGE, "red")[:20], lossless_jpeg(LARGE), b"GIF89a" + b"\0" * 40):
        assert read(arw(broken)).size == SMALL
    assert "damaged or truncated" in refusal(arw(jpeg(LARGE, "red")[:700])).message


def test_only_some_places_are_tried() -> None:
    """Each may be long, whatever it holds."""
    for count, has_preview in ((60, True), (64, False)):
        broken = [Directory({}, b"\xff\xd8\xff" + bytes([number]), 513, 514) for number in range(count)]
        data = raw_file([sensor(), *broken, Directory({}, jpeg(SMALL, "red"), 513, 514)])
        if has_preview:
            assert read(data).size == SMALL
        else:
            assert "raw data of a camera is not supported" in refusal(data).message


def test_a_damaged_directory_is_passed_over() -> None:
    """It says that there are more values than the file has bytes."""
    for tag in (262, 513, 273):
        tags = picture_tags(SMALL, 7, YCBCR, t254=(LONG, [1]))
        tags[tag] = (LONG, [1, 2])
        damaged = raw_file([sensor(), Directory(tags), Directory({}, jpeg(LARGE, "red"), 513, 514)])
        entry = struct.pack("<HHI", tag, LONG, 2)
        assert damaged.count(entry) == 1
        assert read(damaged.replace(entry, struct.pack("<HHI", tag, LONG, 1 << 20))).size == LARGE


def test_subdirectories_of_other_files_change_nothing() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(np.full((32, 48, 3), 7, np.uint8), photometric="rgb", subifds=1, metadata=None)
        writer.write(np.full((16, 24, 3), 9, np.uint8), photometric="rgb", subfiletype=1, metadata=None)
    picture = read(file.getvalue())
    assert picture.size == (48, 32) and picture.notes == () and (picture.pixels == 7).all()
