"""Pictures of every kind, checked by pixel; pictures that cannot be used, each with its error."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.errors import ImageError, ImageFormatError, ImageNotFoundError, ImageTooLargeError
from pocketvlm.messages import ImagePart, ImageURL, ImageURLPart
from pocketvlm.pictures.images import Picture, read_picture

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)
WIDTH, HEIGHT = 48, 32


def quarters(mode: str = "RGB") -> Image.Image:
    """Red, green over blue, yellow: no turn or flip looks like another."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.paste(RED, (0, 0, 24, 16))
    image.paste(GREEN, (24, 0, 48, 16))
    image.paste(BLUE, (0, 16, 24, 32))
    image.paste(YELLOW, (24, 16, 48, 32))
    return image.convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(image: object, **options: Any) -> Picture:
    return read_picture(ImagePart(type="image", image=image), "messages.0.content.1", **options)


def read_url(url: str, **options: Any) -> Picture:
    return read_picture(ImageURLPart(type="image_url", image_url=ImageURL(url=url)), "messages.0.content.1", **options)


def data_uri(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def corners(picture: Picture) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left, bottom right, a little inside."""
    width, height = picture.size
    return [tuple(picture.pixels[y, x].tolist()) for y in (4, height - 5) for x in (4, width - 5)]


def assert_colours(picture: Picture, *colours: tuple[int, ...], off_by: int = 0) -> None:
    found, wanted = np.array(corners(picture)), np.array(colours)
    assert np.abs(found - wanted).max() <= off_by, f"{found.tolist()} is not {wanted.tolist()}"


def png(header: bytes, *rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand: independent of Pillow's writer."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# ---- what a picture is


def test_pixels_are_an_rgb_array_that_cannot_change() -> None:
    picture = read(encoded(quarters(), "PNG"))
    assert picture.size == (WIDTH, HEIGHT)
    assert picture.pixels.shape == (HEIGHT, WIDTH, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert not picture.pixels.flags.writeable
    assert picture.read_ms > 0


def test_the_digest_is_that_of_the_pixels_not_of_the_file() -> None:
    plain, other = encoded(quarters(), "PNG"), encoded(quarters(), "BMP")
    assert read(plain).digest == read(other).digest
    changed = quarters()
    changed.putpixel((47, 31), (255, 255, 1))
    assert read(encoded(changed, "PNG")).digest != read(plain).digest
    black = [read(np.zeros((height, 24 // height, 3), np.uint8)).digest for height in (4, 6)]
    assert black[0] != black[1], "same bytes, other shape"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WebP"])
def test_a_packed_picture_is_the_same(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = quarters()
    data = encoded(image, form, exif=exif)
    plain, packed = read(data), read(data, max_unpacked=image.width * image.height - 1)
    assert packed.packed_size == plain.size == (image.height, image.width)
    assert plain.packed_size is None and bytes(packed.data) == data
    assert (packed.size, packed.digest) == (plain.size, plain.digest)
    assert np.array_equal(packed.pixels, plain.pixels) and not packed.pixels.flags.writeable
    assert read(data, max_unpacked=image.width * image.height).packed_size is None


def test_an_array_that_changes_later_does_not_change_the_picture() -> None:
    array = np.zeros((8, 8, 3), np.uint8)
    picture = read(array)
    array[:] = 255
    assert not picture.pixels.any()


# ---- sources


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    data = encoded(quarters(), "PNG")
    path = tmp_path / "a picture, ü.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    expected = read(data).digest
    found = {
        "bytes": read(data),
        "bytearray": read(bytearray(data)),
        "memoryview": read(memoryview(data)),
        "PIL": read(quarters()),
        "array": read(np.asarray(quarters())),
        "strided array": read(np.asarray(quarters())[::-1][::-1]),
        "data URI": read_url(data_uri(data)),
        "data URI over HTTP": read_url(data_uri(data), local=False),
        "data URI in capitals": read_url(f"DATA:image/png;charset=x;BASE64,{text}"),
        "data URI with line ends": read_url("data:image/png;base64," + "\r\n".join(text[i : i + 76] for i in (0, 76))
                                            + text[152:]),
        "data URI, quoted": read_url("data:image/png;base64," + text.replace("+", "%2B").replace("=", "%3D")),
        "data URI, not base64": read_url("data:image/png," + "".join(f"%{byte:02x}" for byte in data)),
        "data URI of a wrong type": read_url(data_uri(data, "text/plain")),
        "path": read_url(str(path)),
        "file URI": read_url(path.as_uri()),
        "image: path": read(path),
        "image: text": read(str(path)),
    }  # fmt: skip
    for name, value in (("path", path), ("path", str(path)), ("base64", text), ("url", data_uri(data))):
        part = ImagePart.model_validate({"type": "image", name: value})
        found[f"{name}: {type(value).__name__}"] = read_picture(part, "messages.0")
    assert {name: picture.digest == expected for name, picture in found.items()} == dict.fromkeys(found, True)


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (ImageURLPart(type="image_url", image_url=ImageURL(url="data:,x")), "image_url.url"),
        (ImagePart(type="image", url="data:,x"), "url"),
        (ImagePart(type="image", base64="eHh4"), "base64"),
        (ImagePart(type="image", path="no-such.png"), "path"),
        (ImagePart(type="image", image=b"x"), "image"),
    ],
)
def test_errors_name_the_field(part: ImageURLPart | ImagePart, field: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_picture(part, "messages.3.content.1")
    assert caught.value.param == f"messages.3.content.1.{field}"


def refused(kind: type[ImageError], *words: str, url: str | None = None, image: object = None, **options: Any) -> None:
    """The error is exactly of this kind, and says these words."""
    with pytest.raises(ImageError) as caught:
        _ = read_url(url, **options) if url is not None else read(image, **options)
    assert type(caught.value) is kind
    assert caught.value.param == "messages.0.content.1." + ("image_url.url" if url is not None else "image")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_fetched() -> None:
    for url in ("http://example.org/a.png", "HTTPS://example.org/a.png"):
        refused(ImageError, url, "download it first", url=url)
        refused(ImageError, "data: URI", url=url, local=False)
    refused(ImageError, "ftp: is not supported", url="ftp://example.org/a.png")
    refused(ImageError, "this machine", url="file://example.org/a.png")


def test_over_http_no_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(quarters(), "PNG"))
    for url in (str(path), path.as_uri(), "FILE:" + str(path), "file:a.png"):
        refused(ImageError, "files are not read here", url=url, local=False)
    refused(ImageError, "files are not read here", image=str(path), local=False)
    with pytest.raises(ImageError, match="files are not read here") as caught:
        read_picture(ImagePart(type="image", path=path), "messages.0", local=False)
    assert caught.value.param == "messages.0.path"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(ImageNotFoundError, "missing.png", "no such file", url=str(tmp_path / "missing.png"))
    refused(ImageNotFoundError, "no such file", url=(tmp_path / "missing.png").as_uri())
    refused(ImageFormatError, str(tmp_path), "directory", url=str(tmp_path))
    (tmp_path / "empty.png").touch()
    refused(ImageFormatError, "empty.png", "is empty", url=str(tmp_path / "empty.png"))
    refused(ImageNotFoundError, "no such file", url=str(tmp_path / "empty.png" / "below.png"))
    refused(ImageNotFoundError, "is not a file", url="")
    refused(ImageNotFoundError, "cannot be opened", url="a\0b.png")
    refused(ImageNotFoundError, "…", "cannot be opened", url="A" * 100_000)
    with pytest.raises(FileNotFoundError):
        read_url(str(tmp_path / "missing.png"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refused(ImageError, "not a regular file", url=str(tmp_path / "pipe.png"))


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may read everything."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX permissions")
    before = os.geteuid()
    yield
    if os.geteuid() != before:
        os.seteuid(before)


@pytest.mark.usefixtures("ordinary_user")
def test_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(quarters(), "PNG"))
    path.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    refused(ImageError, "secret.png", "permission denied", url=str(path))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64,@@@@", "bad base64"),
        ("data:image/png;base64,iVBORw0KG", "bad base64"),
        ("data:image/png;base64,iVBORw0KGgo", "damaged or truncated"),
        ("data:image/png;base64,ü", "bad base64"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,", "empty"),
        ("data:,hello", "not a picture"),
        ("data:,\ud800", "surrogate"),
    ],
)
def test_bad_data_uris(url: str, says: str) -> None:
    refused(ImageFormatError, "data: URI", says, url=url)


def test_bad_base64_in_a_part_of_its_own() -> None:
    with pytest.raises(ImageFormatError, match=r"messages\.0\.base64: base64 text: bad base64"):
        read_picture(ImagePart(type="image", base64="@@"), "messages.0")


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "empty"),
        (b"Just some text, named .png", "not a picture"),
        (b"%PDF-1.7\n%\xe2\xe3", "is a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"P6 1 1 255 abc", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "not a picture"),
        (b"BM stands for bitmap, but this is text", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "damaged"),
        (b"II*\0", "damaged"),
        (b"RIFF\0\0\0\0WEBP", "damaged"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((3, 4, 4), np.uint8), "[3, 4, 4]"),
        (np.zeros((4, 4), np.uint8), "[4, 4]"),
        pytest.param(object(), "PIL image", id="an object"),
        ([1, 2, 3], "PIL image"),
    ],
    ids=lambda value: repr(value)[:24],
)
@pytest.mark.filterwarnings("ignore:::PIL")
def test_what_is_not_a_picture(image: object, says: str) -> None:
    refused(ImageFormatError, says, image=image)


def test_text_named_png(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("Just some text.")
    refused(ImageFormatError, "notes.png", "not a picture", url=str(path))


# ---- formats

FORMATS: dict[str, tuple[str, dict[str, Any], int]] = {
    "png": ("PNG", {}, 0),
    "jpeg": ("JPEG", {"quality": 95}, 4),
    "progressive jpeg": ("JPEG", {"quality": 95, "progressive": True}, 4),
    "webp": ("WEBP", {"quality": 95}, 10),
    "lossless webp": ("WEBP", {"lossless": True}, 0),
    "gif": ("GIF", {}, 0),
    "bmp": ("BMP", {}, 0),
    "tiff": ("TIFF", {}, 0),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}, 0),
    "avif": ("AVIF", {"quality": 95}, 12),
}


@pytest.fixture(params=FORMATS)
def written(request: pytest.FixtureRequest) -> tuple[Callable[[Image.Image], bytes], int]:
    """A writer of each format, and how far its colours may be off."""
    form, options, off_by = FORMATS[request.param]
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    return lambda image: encoded(image, form, **options), off_by


def test_every_format_by_pixel(written: tuple[Callable[[Image.Image], bytes], int], tmp_path: Path) -> None:
    write, off_by = written
    path = tmp_path / "wrong-name.txt"
    path.write_bytes(write(quarters()))
    for picture in (read(path.read_bytes()), read_url(str(path))):
        assert picture.size == (WIDTH, HEIGHT)
        assert_colours(picture, RED, GREEN, BLUE, YELLOW, off_by=off_by)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_a_truncated_file_is_an_error_wherever_it_ends(
    written: tuple[Callable[[Image.Image], bytes], int], tmp_path: Path
) -> None:
    """Never a picture with a grey rest. Noise: nearly all of such a file is pixels."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    data = written[0](noise)
    path = tmp_path / "cut"
    for percent in (1, 10, 50, 90, 98):
        cut = data[: len(data) * percent // 100]
        refused(ImageFormatError, "damaged or truncated", image=cut)
        path.write_bytes(cut)
        refused(ImageFormatError, str(path), url=str(path))


def test_animations_give_their_first_frame() -> None:
    other = Image.new("RGB", (WIDTH, HEIGHT), "black")
    for form in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = encoded(quarters(), form, save_all=True, append_images=[other, other], duration=50, **options)
        assert Image.open(io.BytesIO(data)).n_frames > 1  # type: ignore[attr-defined]
        assert_colours(read(data), RED, GREEN, BLUE, YELLOW)


# ---- faults that every viewer overlooks


def chunk(kind: bytes, data: bytes, checksum: bytes | None = None) -> bytes:
    """A PNG chunk; with a wrong checksum if one is given."""
    sum_ = struct.pack(">I", zlib.crc32(kind + data)) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + sum_


LARGE = b"x" * 2_000_000
WRONG = bytes(4)
METADATA = {
    "large zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
    "large iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE)),
    "large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
    "large iCCP": chunk(b"iCCP", b"icc\0\0" + zlib.compress(LARGE)),
    "much tEXt": chunk(b"tEXt", b"a\0" + LARGE[:1_000_000]) * 66,
    "tEXt, checksum": chunk(b"tEXt", b"a\0b", WRONG),
    "eXIf, checksum": chunk(b"eXIf", b"MM\0*", WRONG),
    "tRNS, checksum": chunk(b"tRNS", bytes(6), WRONG),
    "private, checksum": chunk(b"prVt", b"a", WRONG),
    "zTXt, method": chunk(b"zTXt", b"a\0\7"),
    "short tRNS": chunk(b"tRNS", b"\0"),
    "short acTL": chunk(b"acTL", b""),
    "fcTL of no animation": chunk(b"fcTL", b"\0\0\0\5" + bytes(22)),
    **{f"short {kind}": chunk(kind.encode(), b"") for kind in ("sRGB", "gAMA", "cHRM", "pHYs", "iCCP", "eXIf")},
}


@pytest.mark.parametrize("name", METADATA)
def test_png_metadata_never_makes_a_picture_unusable(name: str, tmp_path: Path) -> None:
    data = encoded(quarters(), "PNG")
    end = data.index(b"IEND") - 4
    for place in (33, end):  # before the pixels and behind them
        changed = data[:place] + METADATA[name] + data[place:]
        (tmp_path / "a.png").write_bytes(changed)
        for picture in (read(changed), read_url(str(tmp_path / "a.png"))):
            assert_colours(picture, RED, GREEN, BLUE, YELLOW)


def test_metadata_that_is_dropped_does_not_lift_the_limits() -> None:
    huge = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    for extra in METADATA.values():
        refused(ImageTooLargeError, "30000x30000", image=png(huge, extra=extra))
    size = struct.pack(">IIBBBBB", 2000, 2000, 8, 2, 0, 0, 0)
    refused(ImageFormatError, "truncated", image=png(size, b"few", extra=METADATA["large iCCP"]))
    refused(ImageFormatError, "damaged", image=png(size)[:33] + struct.pack(">I", 1 << 31) + b"tEXt")
    bad = encoded(quarters(), "PNG").replace(b"IDAT", b"iDAT", 1)
    refused(ImageFormatError, "damaged", image=bad)


@pytest.mark.parametrize("place", ["before", "behind"])
def test_orientation_of_a_png_is_found_wherever_it_stands(place: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(quarters(), "PNG")
    at = 33 if place == "before" else data.index(b"IEND") - 4
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    raw = exif.tobytes()
    profile = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(raw) + raw.hex().encode())
    for extra in (
        chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")),
        chunk(b"zTXt", profile),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        assert_colours(read(data[:at] + METADATA["large zTXt"] + extra + data[at:]), *TURNED[6])


def test_only_the_first_exif_of_a_png_counts() -> None:
    data = encoded(quarters(), "PNG")
    chunks = []
    for orientation in (6, 3):
        exif = Image.Exif()
        exif[0x0112] = orientation
        chunks.append(chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    for at in (33, data.index(b"IEND") - 4):
        assert_colours(read(data[:at] + chunks[0] + chunks[1] * 100 + data[at:]), *TURNED[6])


@pytest.mark.parametrize("junk", [b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\0", b" \t\n"])
def test_what_scripts_print_in_front_is_skipped(junk: bytes) -> None:
    assert_colours(read(junk + encoded(quarters(), "PNG")), RED, GREEN, BLUE, YELLOW)
    assert_colours(read(junk + encoded(quarters(), "JPEG", quality=95)), RED, GREEN, BLUE, YELLOW, off_by=4)


def test_a_warning_in_front_of_a_png_is_skipped() -> None:
    assert_colours(read(b"<b>Warning</b>: x\n" + encoded(quarters(), "PNG")), RED, GREEN, BLUE, YELLOW)
    refused(ImageFormatError, "not a picture", image=b"x" * 5000 + encoded(quarters(), "PNG"))


def test_png_of_apple_is_refused_by_name() -> None:
    data = encoded(quarters(), "PNG")
    refused(ImageFormatError, "CgBI", "not supported", image=data[:8] + chunk(b"CgBI", bytes(4)) + data[8:])


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(body) + 2) + body


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xE0, b"JFIF\0"),
        segment(0xEE, b"Adobe"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"MPF\0II*\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff"),
        segment(0xE1, b"Exif\0\0II*\0"),
        segment(0xFE, b""),
        b"\0\0\0",
        b"\xff\x01",
        b"\xff\xd8",
        b"\xff\xff\xff",
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:::PIL")
def test_jpeg_metadata_never_makes_a_picture_unusable(extra: bytes) -> None:
    data = encoded(quarters(), "JPEG", quality=95)
    for place in (2, 20):  # before and behind the JFIF segment
        assert_colours(read(data[:place] + extra + data[place:]), RED, GREEN, BLUE, YELLOW, off_by=4)


@pytest.mark.parametrize("padding", [b"\xff" * 60_000, b"\xff" * 60_000 + b"\0", b"\xff\xff\0" * 20_000], ids=len)
def test_long_padding_in_a_jpeg_takes_no_time(padding: bytes) -> None:
    data = encoded(quarters(), "JPEG", quality=95)
    began = time.process_time()
    assert_colours(read(data[:2] + padding + data[2:]), RED, GREEN, BLUE, YELLOW, off_by=4)
    assert time.process_time() - began < 2


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


JPEGS: dict[str, tuple[str, dict[str, Any]]] = {
    "colour": ("RGB", {}),
    "no subsampling": ("RGB", {"subsampling": 0}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
    "restart markers": ("RGB", {"restart_marker_blocks": 3}),
    "progressive": ("RGB", {"progressive": True}),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("picture", ["noise", "flat"])
def test_a_jpeg_without_its_end_is_whole(kind: str, picture: str) -> None:
    mode, options = JPEGS[kind]
    image = noise((70, 50)) if picture == "noise" else Image.new("RGB", (70, 50), "red")
    data = encoded(image.convert(mode), "JPEG", quality=80, **options)
    assert data.endswith(b"\xff\xd9")
    whole = read(data)
    for cut in (1, 2):
        seen = read(data[:-cut])
        assert seen.digest == whole.digest and not seen.notes


@pytest.mark.parametrize("kind", ["colour", "no subsampling", "grey", "restart markers"])
def test_a_jpeg_that_lacks_its_last_block_has_a_note(kind: str) -> None:
    mode, options = JPEGS[kind]
    data = encoded(noise((320, 240)).convert(mode), "JPEG", quality=80, **options)
    seen = read(data[:-12])
    assert len(seen.notes) == 1 and "ends early" in seen.notes[0]
    same = (seen.pixels == read(data).pixels).all(axis=2)
    assert same[:220].all() and same[:, :280].all()
    small = encoded(noise((64, 64)).convert(mode), "JPEG", quality=80, **options)
    assert read(small[:-6]).notes, "one block of few"


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_more_is_refused(kind: str) -> None:
    """At any place, also between two restart markers or scans."""
    mode, options = JPEGS[kind]
    data = encoded(noise((96, 80)).convert(mode), "JPEG", quality=80, **options)
    start = data.index(b"\xff\xda")
    for length in range(start, len(data) * 94 // 100, 97):
        refused(ImageFormatError, "damaged", image=data[:length])
    for marker in ([b"\xff\xd3"] if "restart" in kind else []) + [b"\xff\xda"]:
        refused(ImageFormatError, "damaged", image=data[: data.rindex(marker, 0, len(data) * 94 // 100)])


# ---- files with several pictures


def with_index(*pictures: tuple[int, bytes]) -> bytes:
    """JPEGs in one file, listed by an MPF index with the kind of each (CIPA DC-007)."""
    entries, place = b"", 0
    first = pictures[0][1]
    index_size = 8 + 2 + 12 * 3 + 4 + 16 * len(pictures)
    base = 2 + 8  # where the index begins: behind SOI, marker, length and name
    for number, (kind, data) in enumerate(pictures):
        size = len(data) + (index_size + 8 if number == 0 else 0)
        entries += struct.pack("<IIIHH", kind, size, place - base if number else 0, 0, 0)
        place += size
    tags = struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, len(pictures))
    tags += struct.pack("<HHII", 0xB002, 7, len(entries), 8 + 2 + 12 * 3 + 4)
    index = b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + tags + bytes(4) + entries
    assert len(index) == index_size
    return first[:2] + segment(0xE2, b"MPF\0" + index) + first[2:] + b"".join(data for _, data in pictures[1:])


def test_pictures_in_a_jpeg_are_counted() -> None:
    """But not previews, nor maps of brightness, which every phone puts into its photos."""
    photo, other = encoded(quarters(), "JPEG", quality=95), encoded(Image.new("RGB", (8, 8)), "JPEG")
    gain_map = other[:2] + segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x xmlns:hdrgm="y"/>') + other[2:]
    main, preview, view, unknown = 0x30000, 0x10001, 0x20002, 0
    for others, count in (
        ([], 1),
        ([(view, other)], 2),
        ([(unknown, other), (unknown, other)], 3),
        ([(preview, other)], 1),
        ([(unknown, gain_map)], 1),
        ([(preview, other), (unknown, gain_map), (view, other)], 2),
    ):
        picture = read(with_index((main, photo), *others))
        assert_colours(picture, RED, GREEN, BLUE, YELLOW, off_by=4)
        assert picture.pages == count
        assert len(picture.notes) == (count > 1)
    assert read(encoded(quarters(), "MPO", save_all=True, append_images=[quarters()])).pages == 2


def test_frames_are_not_pages() -> None:
    for form in ("GIF", "PNG", "WEBP", "AVIF"):
        if form in Image.SAVE:
            picture = read(encoded(quarters(), form, save_all=True, append_images=[Image.new("RGB", (48, 32))]))
            assert picture.pages == 1 and not picture.notes


# ---- HEIC: the brands of the first box (ISO/IEC 23008-12)

HEIC_HEAD = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(64)


def test_heic_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(HEIC_HEAD)
    refused(ImageFormatError, "IMG_0001.HEIC", 'pip install ".[heif]"', url=str(path))
    refused(ImageFormatError, ".[heif]", image=HEIC_HEAD.replace(b"ftypheic", b"ftypmif1"))


def test_heic_with_the_extra() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(quarters()).save(file, quality=95)
    picture = read(file.getvalue())
    assert picture.size == (WIDTH, HEIGHT)
    assert_colours(picture, RED, GREEN, BLUE, YELLOW, off_by=16)
    refused(ImageFormatError, "damaged", image=file.getvalue()[:-20])
    refused(ImageTooLargeError, "48x32", image=file.getvalue(), max_pixels=1000)
    two = heif.from_pillow(quarters())
    two.add_from_pillow(Image.new("RGB", (WIDTH, HEIGHT)))
    file = io.BytesIO()
    two.save(file, quality=95)
    picture = read(file.getvalue())
    assert picture.pages == 2 and "page 1 of 2 was seen" in picture.notes[0]
    assert_colours(picture, RED, GREEN, BLUE, YELLOW, off_by=16)


# ---- limits


def test_thirty_thousand_square_is_refused_before_decoding() -> None:
    """The file holds no pixels at all: only its header can have been read."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    for options in ({}, {"local": False}):
        refused(ImageTooLargeError, "30000x30000", "900.0", "100.0", "max_pixels", url=data_uri(png(header)), **options)


def test_the_limit_is_ours_and_not_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in ("PNG", "JPEG", "BMP", "GIF"):
            assert read(encoded(quarters(), form)).size == (WIDTH, HEIGHT)
        for form in ("WEBP", "TIFF"):  # these readers ask Pillow's limit again: still an error of ours
            refused(ImageTooLargeError, "MAX_IMAGE_PIXELS", image=encoded(quarters(), form))


def test_the_limit_can_be_lowered_to_the_pixel(written: tuple[Callable[[Image.Image], bytes], int]) -> None:
    data = written[0](quarters())
    assert read(data, max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)
    refused(ImageTooLargeError, "48x32", image=data, max_pixels=WIDTH * HEIGHT - 1)


def test_pictures_in_memory_have_the_same_limit() -> None:
    for image in (quarters(), np.asarray(quarters())):
        refused(ImageTooLargeError, "48x32", image=image, max_pixels=1000)


@pytest.mark.parametrize("size", [(1 << 16, 1), (1, 1 << 16)])
def test_a_side_has_a_limit_before_decoding(size: tuple[int, int]) -> None:
    """Files without pixels, and pictures in memory."""
    header = png(struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    bmp = struct.pack("<2sIII IiiHHIIiiII", b"BM", 54, 0, 54, 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)
    array = np.zeros((size[1], size[0], 3), np.uint8)
    for image in (header, bmp, Image.open(io.BytesIO(header)), Image.new("1", size), array):
        refused(ImageTooLargeError, f"{size[0]}x{size[1]}", "a side has at most 65,535 pixels", image=image)
    longest = min(size[0], 65_535), min(size[1], 65_535)
    assert read(encoded(Image.new("1", longest), "PNG")).size == longest


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}, {"exact": True, "alpha_quality": 50}])
def test_the_canvas_of_a_webp_is_read_before_its_decoder_sees_it(options: dict[str, Any]) -> None:
    """Each of the three kinds of first chunk; cut so short that a decoder would say `damaged`."""
    image = Image.new("RGBA" if "exact" in options else "RGB", (1234, 567), (9, 9, 9, 9) if "exact" in options else 0)
    refused(ImageTooLargeError, "1234x567", image=encoded(image, "WEBP", **options)[:40], max_pixels=1000)


# ---- colours


def test_transparency_lies_on_white() -> None:
    image = quarters("RGBA")
    image.putpixel((4, 4), (255, 0, 0, 0))
    image.putpixel((43, 4), (0, 0, 0, 128))
    assert_colours(read(image), (255, 255, 255), (127, 127, 127), BLUE, YELLOW)
    assert_colours(read(encoded(image, "PNG")), (255, 255, 255), (127, 127, 127), BLUE, YELLOW)
    assert_colours(read(encoded(image, "WEBP", lossless=True, exact=True)), (255,) * 3, (127,) * 3, BLUE, YELLOW)
    assert_colours(read(image.convert("RGBa")), (255, 255, 255), (127, 127, 127), BLUE, YELLOW)


def test_grey_with_transparency() -> None:
    image = Image.new("LA", (WIDTH, HEIGHT), (100, 255))
    image.putpixel((4, 4), (0, 0))
    assert_colours(read(encoded(image, "PNG")), (255,) * 3, (100,) * 3, (100,) * 3, (100,) * 3)
    assert_colours(read(image.convert("La")), (255,) * 3, (100,) * 3, (100,) * 3, (100,) * 3)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(0, (0, 0, 24, 16))
    image.paste(2, (0, 16, 24, 32))
    colours = (RED, GREEN, BLUE, GREEN)
    assert_colours(read(encoded(image, "PNG")), *colours)
    assert_colours(read(encoded(image, "PNG", transparency=0)), (255,) * 3, *colours[1:])
    assert_colours(read(encoded(image, "PNG", transparency=bytes([255, 255, 0]))), RED, GREEN, (255,) * 3, GREEN)
    assert_colours(read(encoded(image, "GIF", transparency=0)), (255,) * 3, *colours[1:])


def test_a_transparent_colour_of_an_rgb_png() -> None:
    data = encoded(quarters(), "PNG", transparency=BLUE)
    assert_colours(read(data), RED, GREEN, (255,) * 3, YELLOW)


def test_one_bit_and_grey() -> None:
    one_bit = quarters("L").point(lambda value: 255 if value > 100 else 0).convert("1")  # yellow alone is light
    for image, dark, light in ((one_bit, 0, 255), (quarters("L"), 29, 226)):  # ITU-R 601: 0.114 B, 1 - 0.114 B
        picture = read(encoded(image, "PNG"))
        assert_colours(picture, corners(picture)[0], corners(picture)[1], (dark,) * 3, (light,) * 3)


RAMP = tuple(value * 257 for value in (0, 1, 127, 255))  # as 16 bits; 0, 1, 127, 255 as 8


def test_sixteen_bit_grey_png_is_scaled() -> None:
    header = struct.pack(">IIBBBBB", 4, 2, 16, 0, 0, 0, 0)
    row = struct.pack(">4H", *RAMP)
    assert read(png(header, row, row)).pixels[1, :, 1].tolist() == [0, 1, 127, 255]
    key = b"\0\0\0\2tRNS" + struct.pack(">H", RAMP[1])
    key += struct.pack(">I", zlib.crc32(key[4:]))
    assert read(png(header, row, row, extra=key)).pixels[1, :, 1].tolist() == [0, 255, 127, 255]


def test_sixteen_bit_colour_png_is_scaled() -> None:
    row = struct.pack(">12H", *(value for value in RAMP for _ in range(3)))
    picture = read(png(struct.pack(">IIBBBBB", 4, 1, 16, 2, 0, 0, 0), row))
    assert picture.pixels[0].tolist() == [[value] * 3 for value in (0, 1, 127, 255)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_is_scaled(order: str) -> None:
    """A TIFF by hand, in both byte orders."""
    values = np.array([RAMP], f"{order}u2").tobytes()
    tags = [(256, 4), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(values))]
    data = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(values)) + values
    data += struct.pack(f"{order}H", len(tags))
    for tag, value in tags:
        data += struct.pack(f"{order}HHII", tag, 4, 1, value)
    assert read(data + bytes(4)).pixels[0, :, 0].tolist() == [0, 1, 127, 255]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 257, 32639, 65535], np.int32, [0, 1, 127, 255]),
        ([-5, 0, 1_000_000, 2_000_000], np.int32, [0, 0, 128, 255]),
        ([0.0, 0.2, 0.6, 1.0], np.float32, [0, 51, 153, 255]),
        ([0.0, 51.0, 153.0, 255.0], np.float32, [0, 51, 153, 255]),
        ([0.0, 13107.0, 39321.0, 65535.0], np.float32, [0, 51, 153, 255]),
        ([float("nan"), -1.0, 0.6, 1.0], np.float32, [0, 0, 153, 255]),
    ],
)
def test_wide_and_float_grey_is_scaled_not_clipped(values: list[float], dtype: Any, expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype))
    assert image.mode in ("I", "F")
    assert read(image).pixels[0, :, 2].tolist() == expected
    assert read(encoded(image, "TIFF")).pixels[0, :, 2].tolist() == expected


def test_cmyk_and_ycbcr() -> None:
    assert_colours(read(encoded(quarters("CMYK"), "TIFF")), RED, GREEN, BLUE, YELLOW, off_by=1)
    assert_colours(read(quarters("YCbCr")), RED, GREEN, BLUE, YELLOW, off_by=2)
    jpeg = encoded(quarters("CMYK"), "JPEG", quality=95)  # Adobe's: stored inverted, marked so
    assert b"Adobe" in jpeg
    assert_colours(read(jpeg), RED, GREEN, BLUE, YELLOW, off_by=8)


# ---- orientation

TURNED = {  # EXIF 2.32, 4.6.4.A: where the stored first row and column belong
    1: (RED, GREEN, BLUE, YELLOW),
    2: (GREEN, RED, YELLOW, BLUE),
    3: (YELLOW, BLUE, GREEN, RED),
    4: (BLUE, YELLOW, RED, GREEN),
    5: (RED, BLUE, GREEN, YELLOW),
    6: (BLUE, RED, YELLOW, GREEN),
    7: (YELLOW, GREEN, BLUE, RED),
    8: (GREEN, YELLOW, RED, BLUE),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(form, {})
    data = encoded(quarters(), form, exif=exif, **options)
    size = (WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH)
    for image in (data, Image.open(io.BytesIO(data))):
        picture = read(image)
        assert picture.size == size
        assert_colours(picture, *TURNED[orientation], off_by=4)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08", b"Exif\0\0garbage", b"Exif\0\0" + bytes(20)])
@pytest.mark.filterwarnings("ignore:::PIL")
def test_broken_exif_does_not_make_the_picture_unusable(exif: bytes) -> None:
    assert_colours(read(encoded(quarters(), "JPEG", exif=exif, quality=95)), RED, GREEN, BLUE, YELLOW, off_by=4)


# ---- cost


def test_importing_loads_neither_pillow_nor_numpy() -> None:
    code = "import sys, pocketvlm.pictures.images; print(sorted({'PIL', 'numpy', 'PIL.Image'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
