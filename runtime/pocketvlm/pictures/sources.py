"""Where the picture of a message part comes from: text, a file of this machine, or memory. Nothing is decoded here."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from pocketvlm.errors import ImageError, ImageFormatError, ImageNotFoundError, shortened
from pocketvlm.messages import ImagePart, ImageURLPart
from pocketvlm.messages.parts import source_path
from pocketvlm.pictures import base64_text

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(//)?", re.IGNORECASE)  # at least two letters, as C:\ is a drive
_LOCATED = ("http", "https", "file")  # schemes of URLs even without slashes
_LONGEST_PATH = 1 << 15  # characters
_DRIVE = re.compile(r"/?([A-Za-z])[:|](?=/|$)")


@dataclass(frozen=True)
class Source:
    """The source of a picture, for error messages: its name, and the path of the request's field."""

    name: str
    param: str

    def error(self, reason: str, kind: type[ImageError] = ImageFormatError) -> ImageError:
        return kind(f"{self.name}: {reason}", self.param)


def is_url(text: str) -> bool:
    """Return whether a text is a URL, such as data:, file: or https:, rather than a path, which may have a colon."""
    scheme, slashes = _scheme(text)
    return base64_text.is_data_uri(text) or slashes or scheme in _LOCATED


def _scheme(text: str) -> tuple[str, bool]:
    """Return the scheme that a text begins with, if one, and whether slashes follow it."""
    match = _SCHEME.match(text)
    return (match[1].lower(), match[2] is not None) if match else ("", False)


def find_source(part: ImageURLPart | ImagePart, param: str, local: bool) -> tuple[Source, Any]:
    """Return the source, and its content: a path, bytes, or an object in memory."""
    param = source_path(part, param)
    if isinstance(part, ImageURLPart):
        return _from_url(part.image_url.url, param, local)
    if part.url is not None:
        return _from_url(part.url, param, local)
    if part.path is not None:
        return _from_path(part.path, param, local)
    if part.base64 is not None:
        source = Source("base64 text", param)
        return source, _from_base64(part.base64, source)
    if isinstance(part.image, str):  # a path or a URL, as in transformers
        return _from_url(part.image, param, local)
    if isinstance(part.image, os.PathLike):
        return _from_path(Path(part.image), param, local)
    if isinstance(part.image, (bytes, bytearray, memoryview)):
        return Source("bytes", param), bytes(part.image)
    return Source(f"a picture in memory ({type(part.image).__name__})", param), part.image


def local_path(part: ImageURLPart | ImagePart) -> Path | None:
    """Return the path of the local file that a part names; None where its picture is elsewhere."""
    if isinstance(address := part.address, str) and len(address) > _LONGEST_PATH:
        return None  # the picture itself, which need not be decoded
    try:
        _, content = find_source(part, "", local=True)
    except ImageError:
        return None
    return content if isinstance(content, Path) else None


def _from_url(url: str, param: str, local: bool) -> tuple[Source, Path | bytes]:
    if base64_text.is_data_uri(url):
        source = Source("data: URI", param)
        return source, _from_base64(url, source)
    if base64_text.is_picture(url):
        source = Source("base64 text", param)
        return source, _from_base64(url, source)
    scheme, slashes = _scheme(url)
    source = Source(shortened(url), param)
    if scheme in ("http", "https"):
        next_step = "give its path" if local else "send it as a data: URI"
        reason = f"pictures are not fetched from the network; download it first, then {next_step}"
        raise source.error(reason, ImageError)
    if scheme == "file":
        return _from_path(_path_of(url, source) if local else "", param, local, url)
    if slashes:
        raise source.error(f"{shortened(scheme)}: is not supported; give a data: URI or a path", ImageError)
    return _from_path(url, param, local)


def _from_path(path: str | Path, param: str, local: bool, shown: str | None = None) -> tuple[Source, Path]:
    source = Source(shortened(shown or str(path)) or "an empty path", param)
    if not local:
        raise source.error("files are not read here; send the picture as a data: URI", ImageError)
    if str(path) in ("", "."):  # Path("") means the working directory
        raise source.error("is not a file", ImageNotFoundError)
    return source, Path(path)


def _path_of(uri: str, source: Source) -> str:
    path = path_of_uri(uri)
    if path is None:
        raise source.error("only files on this machine can be read", ImageError)
    return path


def path_of_uri(uri: str, *, windows: bool = os.name == "nt") -> str | None:
    """Return the path in a file: URI; None where it names another machine.

    On Windows, a drive may stand after two slashes or three, and with | for its colon, as browsers wrote it.
    """
    parts = urlsplit(uri)
    machine, path = parts.netloc.removeprefix("localhost"), unquote(parts.path)
    if windows and (drive := _DRIVE.match(machine or path)):
        return f"{drive[1]}:{(machine + path)[drive.end() :]}"
    return None if machine else path


def _from_base64(text: str, source: Source) -> bytes:
    try:
        return base64_text.decode(text)
    except ValueError as error:
        raise source.error(str(error)) from None


def read_file(path: Path, source: Source) -> bytes:
    """Return the bytes of a file. Raises as `open_file` does."""
    with open_file(path, source) as file:
        return file.read()


def open_file(path: Path, source: Source) -> IO[bytes]:
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
