"""The parts of a message's content: texts and pictures, also as other clients spell them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Strict,
    Tag,
    model_validator,
)

from pocketvlm.messages.base import AlsoTakes, Open, Text, TextOrNull, by_form, empty_for_null
from pocketvlm.messages.file_kinds import DOCUMENT_SUFFIXES, HEAD, is_pdf, video_format
from pocketvlm.messages.numbers import AnyNumber, Limit

Detail = Literal["auto", "low", "high"]
_DETAILS = {None: "auto", "": "auto", "original": "high"}  # by what clients send for them


def _known_detail(value: object) -> object:
    return _DETAILS.get(value, value) if value is None or isinstance(value, str) else value


_Detail = Annotated[
    Detail, BeforeValidator(_known_detail, json_schema_input_type=Detail | Literal["original", ""] | None)
]


# ---- texts

_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # by type


class TextPart(Open):
    type: Literal["text"]
    text: TextOrNull

    @model_validator(mode="before")
    @classmethod
    def _known_form(cls, value: object) -> object:
        if isinstance(value, str):
            return {"type": "text", "text": value}
        if isinstance(value, Mapping) and (key := _TEXT_KEYS.get(str(value.get("type")))) and key in value:
            return {"type": "text", "text": value[key]}
        return value


# ---- pictures

HANDLE_SCHEME = "sha256:"  # of the name of a file that was sent once; behind it, #page=3 may name one of its pages


def is_handle(text: str) -> bool:
    """Return whether the source of a picture names a file that was sent before."""
    return text[: len(HANDLE_SCHEME)].lower() == HANDLE_SCHEME


def is_picture_object(value: object) -> bool:
    """Return whether a value can be a picture itself, not only name one: a path, bytes, a PIL image or an array."""
    # The attribute of a PIL image would decode it; its class shows that it is there.
    return isinstance(value, (bytes, bytearray, memoryview, os.PathLike)) or hasattr(type(value), "__array_interface__")


class ImageURL(Open):
    """`url` is a data: URI or a handle (sha256:..., or sha256:...#page=3); in Python and on the command line it may be
    a path.

    `max_image_tokens` is an extension.
    """

    url: str
    detail: _Detail = "auto"
    max_image_tokens: Limit = None


def _bare_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class ImageURLPart(Open):
    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_bare_url, json_schema_input_type=ImageURL | str)]

    @model_validator(mode="before")
    @classmethod
    def _options_inside(cls, value: object) -> object:
        """Some clients write `detail` next to `image_url`."""
        if not isinstance(value, Mapping) or isinstance(value.get("image_url"), ImageURL):
            return value
        image_url = _bare_url(value.get("image_url"))
        if isinstance(image_url, Mapping):
            return {**value, "image_url": {**_options(value), **image_url}}
        return value

    @property
    def field(self) -> str:
        """The path of the picture's source within the part, for errors."""
        return "image_url.url"

    @property
    def address(self) -> str:
        return self.image_url.url


def _as_text(value: object) -> object:
    return str(value) if type(value) is int else value


_SOURCES = ("url", "path", "base64", "image")


class ImagePart(Open):
    """The image part of Hugging Face transformers: one of a URL, a path, base64 text, or a picture in memory.

    `image` is a path, bytes, a PIL image, or a uint8 array [height, width, 3]; as text it is a URL or a path. In
    Python, these objects may stand wherever a part has its picture, or in place of the whole part. The parts of other
    clients, which have the picture elsewhere, become one with a `url`, `base64` or `image`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    kind: ClassVar[str] = "image"
    option_names: ClassVar[tuple[str, ...]] = ("detail", "max_image_tokens")

    type: Literal["image"]
    url: str | None = None
    path: str | Path | None = None
    base64: str | None = None
    image: Any = None
    detail: _Detail = "auto"
    max_image_tokens: Limit = None
    _field: str | None = PrivateAttr(None)

    @model_validator(mode="wrap")
    @classmethod
    def _known_form(cls, value: Any, handler: ModelWrapValidatorHandler[ImagePart]) -> ImagePart:
        if not isinstance(value, Mapping):
            return handler({"type": cls.kind, "image": value} if is_picture_object(value) else value)
        source = _object_source(value) or (None if _is_own_form(value, cls.kind) else _foreign_source(value))
        if source is None:
            for path in _FILE_IDS:
                if isinstance(_at(value, path), str):
                    raise ValueError(
                        f"{path} names a file of another service; send the file as a data: URI, or the "
                        f"{HANDLE_SCHEME}... id of POST /v1/images"
                    )
            return handler({**value, "type": cls.kind})
        field, kind, text = source
        part = handler({"type": cls.kind, kind: text, **_options(value, cls.option_names)})
        part._field = field
        return part

    @model_validator(mode="after")
    def _one_source(self) -> ImagePart:
        sources = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"an image part needs exactly one of {', '.join(_SOURCES[:-1])} and {_SOURCES[-1]}")
        return self

    @property
    def field(self) -> str:
        """The path of the picture's source within the part, for errors."""
        return self._field or next(name for name in _SOURCES if getattr(self, name) is not None)

    @property
    def address(self) -> str | None:
        """The source as the text of a `url`; None where it is none."""
        return self.image if isinstance(self.image, str) else self.url


class FilePart(ImagePart):
    """A file of which all pictures are meant: a PDF, a scan of several pages, an animation, a video.

    OpenAI's `file` and what other clients have for it. `pages` selects some, such as "1-3,7"; `password` opens an
    encrypted file. Of a video, `fps` frames of each second are shown, or `frames` at even times; with `changes`, those
    in which nothing moved are left out. `detail` and `max_image_tokens` are those of each page.
    """

    kind: ClassVar[str] = "file"
    option_names: ClassVar[tuple[str, ...]] = (
        *ImagePart.option_names,
        "pages",
        "password",
        "fps",
        "frames",
        "changes",
        "filename",
    )

    type: Literal["file"]  # type: ignore[assignment]
    pages: Annotated[str | None, BeforeValidator(_as_text, json_schema_input_type=str | int | None)] = None
    password: str | None = Field(None, repr=False)
    fps: Annotated[float, Strict(), Field(gt=0, le=100), AnyNumber()] | None = None
    frames: Annotated[int, Strict(), Field(ge=1, le=10_000), AnyNumber()] | None = None
    changes: Annotated[bool, Strict()] | None = None
    filename: str | None = None

    def with_image(self, image: Any) -> ImagePart:
        """Return a picture with the options of this part; errors name the source of this one."""
        part = ImagePart(type="image", image=image, detail=self.detail, max_image_tokens=self.max_image_tokens)
        part._field = self.field
        return part

    def with_frames(self, frames: Any) -> VideoPart:
        """Return a video with the options of this part; errors name the source of this one."""
        part = VideoPart(type="video", image=frames, detail=self.detail, max_image_tokens=self.max_image_tokens)
        part._field = self.field
        return part


class VideoPart(ImagePart):
    """A video that the model sees as one. It stands for a FilePart in a request whose files are opened.

    `image` has the frames.
    """

    kind: ClassVar[str] = "video"

    type: Literal["video"]  # type: ignore[assignment]


def image_of_message(picture: object, field: str) -> ImagePart:
    """Return a picture that a message has next to its content, in `field`: base64 text, a handle, or it itself."""
    kind = "image" if not isinstance(picture, str) else "url" if is_handle(picture) else "base64"
    part = ImagePart.model_validate({"type": "image", kind: picture})
    part._field = f"^{field}"
    return part


def source_path(part: ImageURLPart | ImagePart, param: str) -> str:
    """Return the path of a picture's source in the request, for errors; `param` is the path of its part."""
    if part.field.startswith("^"):
        return param.rpartition(".content.")[0] + "." + part.field[1:]
    return f"{param}.{part.field}"


def _options(part: Mapping[str, Any], names: tuple[str, ...] = ImagePart.option_names) -> dict[str, Any]:
    """Return the options of a part, which may stand next to what has the file, or in it."""
    inner: Mapping[str, Any] = next((part[key] for key in _HOLDERS if isinstance(part.get(key), Mapping)), {})
    return {name: place[name] for place in (inner, part) for name in names if name in place}


def _is_own_form(part: Mapping[str, Any], kind: str) -> bool:
    return part.get("type") == kind and any(
        part.get(name) is not None and not isinstance(part[name], Mapping) for name in _SOURCES
    )


# Where parts have a picture: Responses (image_url, file_data), Anthropic (source), MCP, AI SDK and LangChain (data),
# chat completions (file).
_URLS = ("image_url", "image_url.url", "source.url", "url", "file_url", "video_url.url", "video_url", "video")
_TEXTS = ("base64", "data", "source.data", "file.file_data", "file_data", "b64_json")
_FILE_IDS = ("file_id", "file.file_id", "source.file_id", "image_file.file_id")
_HOLDERS = ("file", "image_url", "video_url", "source")
_DEPTH = 3  # of objects in a part, for data: URIs in any other place


def _object_source(part: Mapping[str, Any]) -> tuple[str, str, object] | None:
    """Return the path of a picture that is itself in a part, where others have its name or text; image; and it."""
    if sum(part.get(name) is not None for name in _SOURCES) > 1:
        return None
    for path in (*_URLS, *_TEXTS, "path"):
        picture = _at(part, path)
        if is_picture_object(picture) and not (path == "path" and isinstance(picture, Path)):
            return path, "image", picture
    return None


def _foreign_source(part: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the path of the picture within a part of another client, url or base64, and its text."""
    for path in _URLS:
        if isinstance(text := _at(part, path), str):
            return path, "url", text
    for path in _TEXTS:
        if isinstance(text := _at(part, path), str):
            return path, "url" if ":" in text[:32] else "base64", text  # base64 has no colon
    for path in _FILE_IDS:
        if isinstance(text := _at(part, path), str) and is_handle(text):
            return path, "url", text
    for path, text in _texts(part, _DEPTH):
        if text.lstrip()[:5].lower() == "data:":
            return path, "url", text
    return None


def _at(part: Mapping[str, Any], path: str) -> object:
    value: object = part
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _texts(part: Mapping[str, Any], depth: int) -> Iterator[tuple[str, str]]:
    """Yield the texts in a part, with their paths."""
    for key, value in part.items():
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, Mapping) and depth > 1:
            for path, text in _texts(value, depth - 1):
                yield f"{key}.{path}", text


# ---- content

_FOREIGN_PICTURES = ("input_image", "image_file", "media")
_FILES = ("file", "input_file", "document", "video", "video_url", "input_video")
_OF_SEVERAL = re.compile(r"\s*data:\s*(application/pdf|video/)", re.IGNORECASE)
_FORMS = {
    **dict.fromkeys(_TEXT_KEYS, "<text>"),
    "image_url": "<image_url>",
    **dict.fromkeys(("image", *_FOREIGN_PICTURES), "<image>"),
    **dict.fromkeys(_FILES, "<file>"),
}


def _form(part: Any) -> str:
    """Return the tag of a part's class, or one of none."""
    if isinstance(part, str):
        return "<text>"
    if is_picture_object(part):
        return "<file>" if _is_of_several(part) else "<image>"
    kind = part.get("type") if isinstance(part, Mapping) else getattr(part, "type", None)
    tag = _FORMS.get(kind, f"<{kind}>") if isinstance(kind, str) else f"<{kind}>"
    if tag in ("<image_url>", "<image>") and isinstance(part, Mapping) and _has_several(part):
        return "<file>"
    if tag != "<image_url>" or not isinstance(part, Mapping):
        return tag
    elsewhere = _object_source(part) or (part.get("image_url") is None and _foreign_source(part))
    return "<image>" if elsewhere else tag


def _has_several(part: Mapping[str, Any]) -> bool:
    """Return whether a picture is a PDF or video, by its name, MIME type or bytes: all of it is meant."""
    return any(_is_of_several(_at(part, path)) for path in (*_URLS, *_TEXTS, "path", "image"))


def _is_of_several(value: object) -> bool:
    if isinstance(value, bytes):
        return is_pdf(head := value[:HEAD]) or video_format(head) is not None
    if not isinstance(value, str | os.PathLike):
        return False
    name = str(value)
    return bool(_OF_SEVERAL.match(name[:64])) or name[-5:].lower().endswith(DOCUMENT_SUFFIXES)


# An answer's thoughts may stand among its parts; its message takes them out.
THOUGHTS = {"thinking": ("thinking",), "reasoning": ("text", "reasoning"), "redacted_thinking": ()}  # keys by type
_FOREIGN_TYPES = sorted({*_FORMS, *THOUGHTS} - {"text"})
Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImageURLPart, Tag("<image_url>")]
    | Annotated[ImagePart, Tag("<image>")]
    | Annotated[FilePart, Tag("<file>")],
    Discriminator(
        _form,
        custom_error_type="unknown_type",
        custom_error_message="type must be one of text, image_url, image, file",
    ),
    AlsoTakes(
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": _FOREIGN_TYPES}}}, {"type": "string"}
    ),
]
_FORMS_OF_CONTENT = by_form("must be a string or a list of parts")
_Content = Annotated[Annotated[Text, Tag("<string>")] | Annotated[tuple[Part, ...], Tag("<list>")], _FORMS_OF_CONTENT]
Content = Annotated[_Content, BeforeValidator(empty_for_null, json_schema_input_type=_Content | None)]
TextContent = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[tuple[TextPart, ...], Tag("<list>")], _FORMS_OF_CONTENT
]
