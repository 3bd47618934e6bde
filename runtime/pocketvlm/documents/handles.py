"""Files that are sent once and then named: kept when they come, put in their place where a request names them.

`sha256:...` is a picture, or all of a PDF or video; `sha256:...#page=3` is one picture of a file of several.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.open_document import open_part
from pocketvlm.errors import ImageError, RequestError, quoted
from pocketvlm.messages import ChatRequest, FilePart, ImagePart, ImageURLPart, Part
from pocketvlm.messages.file_kinds import HEAD, is_pdf, video_format
from pocketvlm.messages.parts import HANDLE_SCHEME, is_handle, source_path
from pocketvlm.pictures.handles import PictureHandle, PictureHandles
from pocketvlm.pictures.images import png_of, read_picture
from pocketvlm.pictures.sources import find_source, read_file

_PAGE = re.compile(r"page=([1-9]\d{0,8})", re.IGNORECASE)
_SHOWN = len(HANDLE_SCHEME) + 12  # characters of a handle in an error


def keep_file(
    handles: PictureHandles, image: Any, param: str | None, limits: DocumentLimits, max_pixels: int
) -> PictureHandle:
    """Keep a file of one or more pictures, after its first one was decoded.

    `image` is a path, the bytes of a file or a data: URI; or a picture in memory, which is kept as a PNG file. Raises
    ImageError with this `param`, which names the file.
    """
    try:
        data, name = _file_of(image, max_pixels)
        part = FilePart.model_validate({"type": "file", "image": data, "filename": name})
        with open_part(part, "", limits, max_pixels, local=False) as document:
            try:
                size = document.read(1).size
            except ImageError:
                if len(document) == 1 or document.unit == "frame":
                    raise
                size = 0, 0  # other pages may be sound
            return handles.add(data, size, len(document))
    except ImageError as error:
        raise type(error)(error.message, param) from None


def with_kept_files(request: ChatRequest, handles: PictureHandles) -> ChatRequest:
    """Return the request with the files that it names by handles, each in the place of its part.

    Raises ImageNotFoundError for an unknown handle, and RequestError for a page that cannot be meant. Both name the
    field.
    """
    messages = []
    for i, message in enumerate(request.messages):
        if isinstance(content := message.content, tuple):
            parts = tuple(_resolved(part, f"messages.{i}.content.{j}", handles) for j, part in enumerate(content))
            message = message.model_copy(update={"content": parts})
        messages.append(message)
    return request.model_copy(update={"messages": tuple(messages)})


def _file_of(image: Any, max_pixels: int) -> tuple[bytes, str | None]:
    """Return the bytes of a file, and its name if it has one."""
    part = ImagePart(type="image", image=image)
    source, content = find_source(part, "", local=True)
    if isinstance(content, Path):
        return read_file(content, source), source.name
    if isinstance(content, bytes):
        return content, None
    return png_of(read_picture(part, "", max_pixels=max_pixels)), None


def _resolved(part: Part, param: str, handles: PictureHandles) -> Part:
    if not isinstance(part, ImageURLPart | ImagePart) or not is_handle(part.address or ""):
        return part
    field = source_path(part, param)
    id, mark, fragment = (part.address or "").partition("#")
    data, count = handles.use(id, field)
    is_whole = is_pdf(head := data[:HEAD]) or video_format(head) is not None  # all of it is meant by default
    selected = _selected_page(fragment, field, has_pages=is_whole or count > 1) if mark else None
    if isinstance(part, FilePart):
        if selected is not None and part.pages is not None:
            raise RequestError(f"cannot be combined with {quoted('#' + fragment)}; leave out one", f"{param}.pages")
        options: dict[str, Any] = part.model_dump(exclude={"type", "url", "image"})
        options |= {"pages": selected or part.pages, "filename": part.filename or id[:_SHOWN]}
    else:
        shown = part.image_url if isinstance(part, ImageURLPart) else part
        options = {"detail": shown.detail, "max_image_tokens": shown.max_image_tokens}
        if is_whole or selected is not None:
            options |= {"pages": selected, "filename": id[:_SHOWN]}
    kind = FilePart if "pages" in options else ImagePart
    named = kind.model_validate({"type": kind.kind, "image": data, **options})
    named._field = part.field
    return named


def _selected_page(fragment: str, field: str, *, has_pages: bool) -> str:
    """Return the page that the fragment of a handle names."""
    if (match := _PAGE.fullmatch(fragment)) is None:
        raise RequestError(f"invalid page {quoted('#' + fragment)}; use e.g. #page=3, counted from 1", field)
    if not has_pages:
        raise RequestError(f"the file is one picture, without pages; leave out {quoted('#' + fragment)}", field)
    return match[1]
