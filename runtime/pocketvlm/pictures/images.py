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
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pocketvlm.errors import ImageError, ImageFormatError, ImageNotFoundError, ImageTooLargeError
from pocketvlm.messages import ImagePart, ImageURLPart
from pocketvlm.messages.parts import source_path
from pocketvlm.pictures import base64_text
from pocketvlm.pictures.opened import Opened, UnsupportedKindError
from pocketvlm.system.json_types import ByteArray

if TYPE_CHECKING:  # numpy and Pillow are imported with the first picture
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    _Reader = Callable[[IO[bytes]], Image.Image]

MAX_PIXELS = 100_000_000
FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF and HEIC"

_ORIENTATION = 0x0112  # the EXIF tag
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_READERS = (
    (re.compile(rb"GIF8[79]a"), "PIL.GifImagePlugin", "GifImageFile"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "PIL.WebPImagePlugin", "WebPImageFile"),
    (re.compile(rb"BM"), "PIL.BmpImagePlugin", "BmpImageFile"),
)
_OPENERS = (
    (re.compile(rb"(?=II[*+]\0|MM\0[*+])"), "tiff", "open_tiff"),
    # What scripts print by mistake may stand in front: line ends, a byte order mark, warnings.
    (re.compile(rb".{,400}?(?=\x89PNG\r\n\x1a\n)", re.DOTALL), "png", "open_png"),
    (re.compile(rb"[\s\0\xef\xbb\xbf]{,64}(?=\xff\xd8[\xff\0])"), "jpeg", "open_jpeg"),
)
_UNSUPPORTED = re.compile(r"unsupported|not (yet )?supported|cannot handle", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(//)?", re.IGNORECASE)  # at least two letters, as C:\ is a drive


@dataclass(frozen=True, eq=False)
class Picture:
    """`pixels` is uint8 [height, width, 3], RGB, C-contiguous and read-only.

    `digest` is the SHA-256 of size and pixels, in hex: equal pictures have equal digests, even from different files.
    `read_ms` is the time from source to array, in milliseconds. `pages` counts the pictures of the file, of which this
    is the first, or the one that the file names as its main picture; an animation has one. `notes` are sentences for
    the user about what was read otherwise than one may expect.
    """

    pixels: ByteArray = field(repr=False)
    digest: str
    read_ms: float
    pages: int = 1
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass(frozen=True)
class _Source:
    """The source of a picture, for error messages: its name, and the path of the request's field."""

    name: str
    param: str

    def error(self, reason: str, kind: type[ImageError] = ImageFormatError) -> ImageError:
        return kind(f"{self.name}: {reason}", self.param)


def read_picture(
    part: ImageURLPart | ImagePart, param: str, *, max_pixels: int = MAX_PIXELS, local: bool = True
) -> Picture:
    """Read the picture of one message part; `param` is the path of the part, such as `messages.0.content.1`.

    With `local=False`, as over HTTP, paths and file: URIs are refused. http(s): URLs are always refused, because
    nothing here uses the network. The first page of a file or frame of an animation is used, transparent pixels are
    put on white unless nothing could be seen there, and the EXIF orientation is applied.

    Raises ImageNotFoundError, ImageTooLargeError (over `max_pixels`), ImageFormatError (not a picture, truncated, or of
    an unsupported format), or ImageError for a source that is refused or cannot be read. The error's `param` is the
    path of the field.
    """
    started = time.perf_counter()
    source, content = _source(part, param, local)
    if isinstance(content, bytes):
        if not content:
            raise source.error("is empty")
        opened, image = _decode(io.BytesIO(content), source, max_pixels)
    elif isinstance(content, Path):
        with _open_file(content, source) as file:
            opened, image = _decode(file, source, max_pixels)
    else:
        opened, image = _load(_from_memory(content, source), source, max_pixels)
    pixels = _array(image)
    digest = hashlib.sha256(b"%dx%d:" % image.size)
    digest.update(pixels.data)
    notes = (
        [*opened.notes, f"the file has {opened.pages} pages, of which one was read"]
        if opened.pages > 1
        else opened.notes
    )
    return Picture(
        pixels, digest.hexdigest(), (time.perf_counter() - started) * 1000, pages=opened.pages, notes=tuple(notes)
    )


# ---- sources


def _source(part: ImageURLPart | ImagePart, param: str, local: bool) -> tuple[_Source, Any]:
    """Return the source, and its content: a path, bytes, or an object in memory."""
    param = source_path(part, param)
    if isinstance(part, ImageURLPart):
        return _from_url(part.image_url.url, param, local)
    if part.url is not None:
        return _from_url(part.url, param, local)
    if part.path is not None:
        return _from_path(part.path, param, local)
    if part.base64 is not None:
        source = _Source("base64 text", param)
        return source, _from_base64(part.base64, source)
    if isinstance(part.image, str):  # a path or a URL, as in transformers
        return _from_url(part.image, param, local)
    if isinstance(part.image, Path):
        return _from_path(part.image, param, local)
    if isinstance(part.image, (bytes, bytearray, memoryview)):
        return _Source("bytes", param), bytes(part.image)
    return _Source(f"a picture in memory ({type(part.image).__name__})", param), part.image


def _from_url(url: str, param: str, local: bool) -> tuple[_Source, Path | bytes]:
    if base64_text.is_data_uri(url):
        source = _Source("data: URI", param)
        return source, _from_base64(url, source)
    if base64_text.is_picture(url):
        source = _Source("base64 text", param)
        return source, _from_base64(url, source)
    scheme, slashes = match.groups() if (match := _SCHEME.match(url)) else ("", None)
    scheme = scheme.lower()
    source = _Source(_shortened(url), param)
    if scheme in ("http", "https"):
        next_step = "give its path" if local else "send it as a data: URI"
        reason = f"pictures are not fetched from the network; download it first, then {next_step}"
        raise source.error(reason, ImageError)
    if scheme == "file":
        return _from_path(_path_of(url, source) if local else "", param, local, url)
    if slashes:
        raise source.error(f"{scheme}: is not supported; give a data: URI or a path", ImageError)
    return _from_path(url, param, local)


def _from_path(path: str | Path, param: str, local: bool, shown: str | None = None) -> tuple[_Source, Path]:
    source = _Source(_shortened(shown or str(path)) or "an empty path", param)
    if not local:
        raise source.error("files are not read here; send the picture as a data: URI", ImageError)
    if str(path) in ("", "."):  # Path("") means the working directory
        raise source.error("is not a file", ImageNotFoundError)
    return source, Path(path)


def _path_of(uri: str, source: _Source) -> str:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise source.error("only files on this machine can be read", ImageError)
    path = unquote(parts.path)
    return path[1:] if os.name == "nt" and re.match(r"/[A-Za-z]:", path) else path


def _from_base64(text: str, source: _Source) -> bytes:
    try:
        return base64_text.decode(text)
    except ValueError as error:
        raise source.error(str(error)) from None


def _open_file(path: Path, source: _Source) -> IO[bytes]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise source.error("is a directory, not a picture")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, and a device may never end
            raise source.error("is not a regular file", ImageError)
        if status.st_size == 0:
            raise source.error("is empty")
        return path.open("rb")
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise source.error("no such file", ImageNotFoundError) from None
    except PermissionError:
        raise source.error("permission denied", ImageError) from None
    except (OSError, ValueError) as error:  # a name that is too long or contains NUL
        reason = getattr(error, "strerror", None) or error
        raise source.error(f"cannot be opened: {reason}", ImageNotFoundError) from None


def _from_memory(image: object, source: _Source) -> Opened:
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
    return _opened(Image.fromarray(np.ascontiguousarray(image)))


def _shortened(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:100]}…{name[-50:]}"


# ---- decoding


def _decode(file: IO[bytes], source: _Source, max_pixels: int) -> tuple[Opened, Image.Image]:
    head = file.read(512)
    size = _webp_canvas(head)
    if size is not None:  # Pillow's WebP reader allocates the pixels when it opens a file
        _check_size(size, source, max_pixels)
    start, opener = _opener(head, source)
    file.seek(start)
    try:
        opened = opener(file)
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        raise _unreadable(error, source) from None
    return _load(opened, source, max_pixels)


def _load(opened: Opened, source: _Source, max_pixels: int) -> tuple[Opened, Image.Image]:
    """Decode the pixels of a picture whose header was read, and return it as upright RGB."""
    _check_size(opened.size, source, max_pixels)
    try:
        image = opened.load()
        rgb, note = _to_rgb(image)
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        raise _unreadable(error, source) from None
    if note:
        opened.notes.append(note)
    return opened, _upright(rgb, image)


def _opened(image: Image.Image, pages: int = 1) -> Opened:
    def load() -> Image.Image:
        image.load()
        return image

    return Opened(image.size, load, pages)


def _check_size(size: tuple[int, int], source: _Source, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise source.error("has no pixels")
    if width * height > max_pixels:
        raise source.error(
            f"{width}x{height} is {width * height / 1e6:,.1f} megapixels, over the limit of "
            f"{max_pixels / 1e6:,.1f}; make it smaller or raise max_pixels",
            ImageTooLargeError,
        )


def _unreadable(error: Exception, source: _Source) -> Exception:
    """Return the error to raise for an error of a Pillow reader."""
    from PIL import Image

    if isinstance(error, MemoryError | ImageError):
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        # A few readers also check Pillow's own limit. We do not change it, because it is global to the process.
        return source.error(f"{error} (PIL.Image.MAX_IMAGE_PIXELS)", ImageTooLargeError)
    if isinstance(error, UnsupportedKindError):
        return source.error(f"{error} is not supported")
    reason = str(error).strip() or type(error).__name__
    if _UNSUPPORTED.search(reason):  # the file may be sound
        return source.error(f"is of a kind that is not supported: {reason}")
    return source.error(f"damaged or truncated: {reason}")


def _opener(head: bytes, source: _Source) -> tuple[int, Callable[[IO[bytes]], Opened]]:
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
    raise source.error(f"is not a picture of a supported format ({FORMATS})")


def _open_with(reader: _Reader, file: IO[bytes]) -> Opened:
    image = reader(file)
    # The frames of other formats are an animation.
    return _opened(image, getattr(image, "n_frames", 1) if image.format == "HEIF" else 1)


def _iso_reader(head: bytes, source: _Source) -> _Reader:
    """Return the reader for AVIF or HEIC. They share a container, whose first box lists brands."""
    box = head[: int.from_bytes(head[:4], "big")]
    brands = {box[8:12], *(box[start : start + 4] for start in range(16, len(box), 4))}
    if brands & _AVIF_BRANDS:
        try:
            from PIL.AvifImagePlugin import AvifImageFile
        except ImportError:
            raise source.error('this Pillow cannot read AVIF: pip install "pillow>=11.3"') from None
        return AvifImageFile
    if brands & _HEIF_BRANDS:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise source.error('HEIC needs one more package: pip install "pocketvlm[heif]"') from None
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


# ---- pixels


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Convert a picture of any mode to RGB, without transparency. The note says what became of that, if not usual."""
    from pocketvlm.pictures.alpha import flatten

    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        return flatten(image)
    return image if image.mode == "RGB" else image.convert("RGB"), None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, or float, to mode L; Pillow's own conversion would clip."""
    import numpy as np
    from PIL import Image

    from pocketvlm.pictures.depth import narrow_to_eight_bits, wide_to_eight_bits

    values = np.asarray(image)
    key = image.info.get("transparency")
    narrow = values.dtype.kind != "f" and values.max() <= 65535
    grey = Image.fromarray(
        narrow_to_eight_bits(values, 16) if narrow else wide_to_eight_bits(values, floats=image.mode == "F")
    )
    if isinstance(key, int):  # this shade of grey is transparent
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of the decoded `original`. Readers that apply it themselves have removed the tag."""
    from PIL.Image import Transpose

    transposes = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        orientation = original.getexif().get(_ORIENTATION, 1)
    except Exception:  # a picture with damaged metadata is still usable
        return rgb
    transpose = transposes.get(orientation) if isinstance(orientation, int) else None
    return rgb if transpose is None else rgb.transpose(transpose)


def _array(image: Image.Image) -> npt.NDArray[np.uint8]:
    import numpy as np

    pixels = np.asarray(image, dtype=np.uint8, order="C")  # a view of the bytes that Pillow copies out
    pixels.setflags(write=False)
    return pixels
