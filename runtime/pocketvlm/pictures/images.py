"""Read the picture of a request into an upright RGB array, within limits. Nothing here depends on a model.

The format is detected from the file's content, not from its name or MIME type. The size is read from the header and
compared with the limit before any pixel is decoded. Pillow's readers are called directly: `Image.open` would also try
rare formats, one of which runs Ghostscript, and has its own limit of sizes.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pocketvlm.errors import ImageError, ImageTooLargeError, shortened
from pocketvlm.messages import ImagePart, ImageURLPart
from pocketvlm.messages.file_kinds import AVIF_BRANDS, HEIF_BRANDS, brands, is_pdf
from pocketvlm.pictures.formats import FORMATS
from pocketvlm.pictures.known_files import KnownFile, KnownFiles
from pocketvlm.pictures.opened import MAX_PICTURES, MAX_SIDE, Opened, UnsupportedKindError, exif_orientation
from pocketvlm.pictures.rgb import upright_rgb
from pocketvlm.pictures.sources import Source, find_source, open_file
from pocketvlm.system.extras import install_extra
from pocketvlm.system.json_types import ByteArray

if TYPE_CHECKING:  # numpy and Pillow are imported with the first picture
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    _Reader = Callable[[IO[bytes]], Image.Image]

MAX_PIXELS = 100_000_000
_LARGEST_KNOWN = 32 << 20  # bytes: larger files are not read into memory to look whether they are known

_READERS = (
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "PIL.WebPImagePlugin", "WebPImageFile"),
    (re.compile(rb"BM"), "PIL.BmpImagePlugin", "BmpImageFile"),
)
_OPENERS = (
    (re.compile(rb"(?=II[*+]\0|MM\0[*+])"), "tiff", "open_tiff"),
    (re.compile(rb"(?=GIF8[79]a)"), "gif", "open_gif"),
    # What scripts print by mistake may stand in front: line ends, a byte order mark, warnings.
    (re.compile(rb".{,400}?(?=\x89PNG\r\n\x1a\n)", re.DOTALL), "png", "open_png"),
    (re.compile(rb"[\s\0\xef\xbb\xbf]{,64}(?=\xff\xd8[\xff\0])"), "jpeg", "open_jpeg"),
)
_UNSUPPORTED = re.compile(r"unsupported|not (yet )?supported|cannot handle", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Picture:
    """`data` is the pixels, uint8 [height, width, 3], RGB, C-contiguous and read-only.

    With `packed_size`, (width, height), `data` is the bytes of the file instead, uint8 [bytes], which takes a tenth of
    the memory.
    `digest` is the SHA-256 of size and pixels, in hex: equal pictures have equal digests, even from different files.
    `read_ms` is the time from source to array, in milliseconds. `pages` counts the pictures of the file, of which this
    is the first, or the one that the file names as its main picture; an animation has one. `notes` are sentences for
    the user about what was read otherwise than one may expect.
    """

    data: ByteArray = field(repr=False)
    digest: str
    read_ms: float
    pages: int = 1
    notes: tuple[str, ...] = ()
    packed_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.packed_size or (self.data.shape[1], self.data.shape[0])

    @property
    def pixels(self) -> ByteArray:
        """The pixels, uint8 [height, width, 3]. They are decoded at each call where the file is kept."""
        if self.packed_size is None:
            return self.data
        width, height = self.packed_size
        _, image = _decode(io.BytesIO(self.data.tobytes()), Source("a picture", ""), width * height)
        return _array(image)


def read_picture(
    part: ImageURLPart | ImagePart,
    param: str,
    *,
    max_pixels: int = MAX_PIXELS,
    max_unpacked: int | None = None,
    local: bool = True,
    known: KnownFiles | None = None,
) -> Picture:
    """Read the picture of one message part; `param` is the path of the part, such as `messages.0.content.1`.

    With `local=False`, as over HTTP, paths and file: URIs are refused. http(s): URLs are always refused, because
    nothing here uses the network. The first page of a file or frame of an animation is used, transparent pixels are
    put on white unless nothing could be seen there, and the EXIF orientation is applied. A picture of more pixels than
    `max_unpacked` stays packed, if its file came with the request. So does the picture of a file that is `known`: its
    pixels are needed only if no cache holds its embeddings. Other files become known.

    Raises ImageNotFoundError, ImageTooLargeError (over `max_pixels`, or a side over MAX_SIDE), ImageFormatError (not a
    picture, truncated, or of an unsupported format), or ImageError for a source that is refused or cannot be read. The
    error's `param` is the path of the field.
    """
    started = time.perf_counter()
    source, content = find_source(part, param, local)
    if known is not None and isinstance(content, Path):
        with open_file(content, source) as file:
            if os.fstat(file.fileno()).st_size <= _LARGEST_KNOWN:
                content = file.read()
    sha256 = b""
    if isinstance(content, bytes):
        if not content:
            raise source.error("is empty")
        if known is not None:
            sha256 = hashlib.sha256(content).digest()
            if (file_known := known.get(sha256)) is not None:
                _check_size(file_known.size, source, max_pixels)
                return Picture(
                    _bytes_as_array(content),
                    file_known.digest,
                    (time.perf_counter() - started) * 1000,
                    pages=file_known.pages,
                    notes=file_known.notes,
                    packed_size=file_known.size,
                )
        opened, image = _decode(io.BytesIO(content), source, max_pixels)
    elif isinstance(content, Path):
        with open_file(content, source) as file:
            opened, image = _decode(file, source, max_pixels)
    else:
        opened, image = _load(_from_memory(content, source), source, max_pixels)
    pixels = _array(image)
    notes = list(opened.notes)
    if opened.pages > 1:
        notes.append(f'page {opened.page} of {opened.pages} was seen; pages="1-{opened.pages}" shows all')
    digest = _digest(pixels)
    if known is not None and sha256:
        known.add(sha256, KnownFile(image.size, digest, opened.pages, tuple(notes)))
    packed = isinstance(content, bytes) and max_unpacked is not None and image.width * image.height > max_unpacked
    return Picture(
        _bytes_as_array(content) if packed else pixels,
        digest,
        (time.perf_counter() - started) * 1000,
        pages=opened.pages,
        notes=tuple(notes),
        packed_size=image.size if packed else None,
    )


def measure_picture(
    part: ImageURLPart | ImagePart, param: str, *, max_pixels: int = MAX_PIXELS, local: bool = True
) -> Picture:
    """Return a picture of the same size as `read_picture`, without pixels where the file's header says the size.

    So damage behind the header is not noticed. Raises as `read_picture` does.
    """
    source, content = find_source(part, param, local)
    if isinstance(content, bytes | Path):
        if not content:
            raise source.error("is empty")
        with open_file(content, source) if isinstance(content, Path) else io.BytesIO(content) as file:
            size = measure_one(open_pictures(file, source, max_pixels), source, max_pixels)
    else:
        size = measure_one(_from_memory(content, source), source, max_pixels)
    return picture_of_size(size) if size else read_picture(part, param, max_pixels=max_pixels, local=local)


def picture_of_size(size: tuple[int, int]) -> Picture:
    """Return a picture of which only the size is known, (width, height)."""
    return Picture(_bytes_as_array(b""), "", 0.0, packed_size=size)


def picture_of(pixels: ByteArray, started: float, *, pages: int = 1, notes: tuple[str, ...] = ()) -> Picture:
    """Return a picture of pixels, uint8 [height, width, 3], whose reading began at `started`, a perf_counter()."""
    pixels.setflags(write=False)
    return Picture(pixels, _digest(pixels), (time.perf_counter() - started) * 1000, pages=pages, notes=notes)


def packed(picture: Picture) -> Picture:
    """Return the same picture as a compressed file, unless that would be larger."""
    if picture.packed_size is not None:
        return picture
    data = png_of(picture)
    if len(data) >= picture.data.size:
        return picture
    return replace(picture, data=_bytes_as_array(data), packed_size=picture.size)


def png_of(picture: Picture) -> bytes:
    """Return the picture as a PNG file, written quickly."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _digest(pixels: ByteArray) -> str:
    height, width, _ = pixels.shape
    digest = hashlib.sha256(b"%dx%d:" % (width, height))
    digest.update(pixels.data)
    return digest.hexdigest()


# ---- decoding


def _decode(file: IO[bytes], source: Source, max_pixels: int) -> tuple[Opened, Image.Image]:
    return _load(open_pictures(file, source, max_pixels), source, max_pixels)


def open_pictures(file: IO[bytes], source: Source, max_pixels: int = MAX_PIXELS) -> Opened:
    """Read the header of a file, which must stay open. Raises ImageError."""
    head = file.read(512)
    size = _webp_canvas(head)
    if size is not None:  # Pillow's WebP reader allocates the pixels when it opens a file
        _check_size(size, source, max_pixels)
    start, opener = _opener(head, source)
    file.seek(start)
    try:
        return opener(file)
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        raise _unreadable(error, source) from None


def count_pictures(opened: Opened, source: Source) -> int:
    """Return how many pictures a file has, with the frames of an animation. Raises ImageError."""
    try:
        count = max(1, opened.count() if opened.count else 1)
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        raise _unreadable(error, source) from None
    if count > MAX_PICTURES:
        raise source.error(f"has more than {MAX_PICTURES:,} frames; split it", ImageTooLargeError)
    return count


def select_one(opened: Opened, number: int, source: Source) -> Opened:
    """Return one picture of a file, by its number from 0, of which only the header was read. Raises ImageError."""
    try:
        return opened.select(number) if opened.select else opened
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        raise _unreadable(error, source) from None


def read_one(opened: Opened, number: int, source: Source, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read one picture of a file, by its number from 0. Raises ImageError."""
    started = time.perf_counter()
    one, image = _load(select_one(opened, number, source), source, max_pixels)
    return picture_of(_array(image), started, notes=tuple(one.notes))


def measure_one(opened: Opened, source: Source, max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
    """Return the upright (width, height); None where the picture has to be decoded to know it. Raises ImageError."""
    _check_size(opened.size, source, max_pixels)
    return opened.upright_size


def _load(opened: Opened, source: Source, max_pixels: int) -> tuple[Opened, Image.Image]:
    """Decode the pixels of a picture whose header was read, and return it as upright RGB."""
    _check_size(opened.size, source, max_pixels)
    try:
        image, note = upright_rgb(opened.load())
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        raise _unreadable(error, source) from None
    if note:
        opened.notes.append(note)
    return opened, image


def _opened(image: Image.Image, pages: int = 1) -> Opened:
    def load() -> Image.Image:
        image.load()
        return image

    def select(number: int) -> Opened:
        image.seek(number)
        return Opened(image.size, load, pages, orientation=orientation)

    orientation = partial(exif_orientation, image.getexif)
    count = partial(getattr, image, "n_frames", 1)
    return Opened(image.size, load, pages, count=count, select=select, orientation=orientation)


def _from_memory(image: object, source: Source) -> Opened:
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        return _opened(image)
    if not isinstance(image, np.ndarray):
        raise source.error("unsupported type; give bytes, a path, a PIL image or a uint8 array [height, width, 3]")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise source.error(f"must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}")
    if not image.size:
        raise source.error("has no pixels")
    height, width, _ = image.shape
    return Opened((width, height), lambda: Image.fromarray(np.ascontiguousarray(image)), orientation=lambda: 1)


def _check_size(size: tuple[int, int], source: Source, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise source.error("has no pixels")
    if max(size) > MAX_SIDE:
        raise source.error(
            f"{width}x{height} is too long; a side has at most {MAX_SIDE:,} pixels; make it smaller or cut it",
            ImageTooLargeError,
        )
    if width * height > max_pixels:
        raise source.error(
            f"{width}x{height} is {width * height / 1e6:,.1f} megapixels, over the limit of "
            f"{max_pixels / 1e6:,.1f}; make it smaller, or raise the limit with max_pixels=",
            ImageTooLargeError,
        )


def _unreadable(error: Exception, source: Source) -> Exception:
    """Return the error to raise for an error of a Pillow reader."""
    from PIL import Image

    if isinstance(error, MemoryError | ImageError):
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        # A few readers also check Pillow's own limit. We do not change it, because it is global to the process.
        return source.error(f"{error} (PIL.Image.MAX_IMAGE_PIXELS)", ImageTooLargeError)
    if isinstance(error, UnsupportedKindError):
        return source.error(f"{error} is not supported")
    reason = shortened(str(error).strip() or type(error).__name__)
    if _UNSUPPORTED.search(reason):  # the file may be sound
        return source.error(f"is of a kind that is not supported: {reason}")
    return source.error(f"damaged or truncated: {reason}")


def _opener(head: bytes, source: Source) -> tuple[int, Callable[[IO[bytes]], Opened]]:
    """Return where the picture begins in a file that begins with `head`, and what opens it."""
    if head[4:8] == b"ftyp":
        return 0, partial(_open_with, _iso_reader(head, source))
    for signature, module, name in _READERS:
        if signature.match(head):
            pillow: _Reader = getattr(importlib.import_module(module), name)
            return 0, partial(_open_with, pillow)
    for signature, module, name in _OPENERS:
        if match := signature.match(head):
            opener = getattr(importlib.import_module(f"pocketvlm.pictures.{module}"), name)
            return match.end(), opener
    if is_pdf(head):
        raise source.error("is a PDF; give it as a part of type file, or with a name that ends in .pdf")
    raise source.error(f"is not a picture of a supported format ({FORMATS})")


def _open_with(reader: _Reader, file: IO[bytes]) -> Opened:
    image = reader(file)
    if image.format != "HEIF":  # the frames of other formats are an animation
        return _opened(image)
    return replace(_opened(image, getattr(image, "n_frames", 1)), page=1 + image.tell())


def _iso_reader(head: bytes, source: Source) -> _Reader:
    """Return the reader for AVIF or HEIC. They share a container, whose first box lists brands."""
    found = brands(head)
    if found & AVIF_BRANDS:
        try:
            from PIL.AvifImagePlugin import AvifImageFile
        except ImportError:
            raise source.error('this Pillow cannot read AVIF: pip install "pillow>=11.3"') from None
        return AvifImageFile
    if found & HEIF_BRANDS:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise source.error(f"HEIC needs one more package: {install_extra('heif')}") from None
        reader: _Reader = HeifImageFile
        return reader
    raise source.error(f"is not a picture of a supported format ({FORMATS})")


def _webp_canvas(head: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a WebP file, None for other files.

    The first chunk has them: extended, lossless or lossy (RFC 9649, sections 2.5 to 2.7).
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None

    def number(start: int, size: int) -> int:
        return int.from_bytes(head[start : start + size], "little")

    if head[12:16] == b"VP8X":
        return number(24, 3) + 1, number(27, 3) + 1
    if head[12:16] == b"VP8L":
        bits = number(21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF


# ---- arrays


def _array(image: Image.Image) -> npt.NDArray[np.uint8]:
    import numpy as np

    pixels = np.asarray(image, dtype=np.uint8, order="C")  # a view of the bytes that Pillow copies out
    pixels.setflags(write=False)
    return pixels


def _bytes_as_array(data: bytes) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer(data, np.uint8)
