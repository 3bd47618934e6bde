"""Captions next to the pictures: a text for training programs, or XMP, which photo programs read.

https://developer.adobe.com/xmp/docs/XMPSpecifications/
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import escape

from pocketvlm.batch.lines import answer_text
from pocketvlm.system.atomic import new_file

if TYPE_CHECKING:
    from pocketvlm.batch.run import Answers

Kind = Literal["txt", "xmp"]
KINDS = ("txt", "xmp")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# What an answer's fields are in XMP, by the names that schemas give them.
_DESCRIPTION, _TITLE, _SUBJECT = ("description", "caption"), ("title", "headline"), ("keywords", "tags", "subject")


class Sidecars:
    """The sidecars of a batch. `pictures` has the file that a request asks about, by custom_id.

    A file is ours if it has exactly the bytes that the answer in the record makes. Others are never changed: they are
    in `kept`. `faults` has those that could not be written, with the reason.
    """

    def __init__(self, kind: Kind, pictures: Mapping[str, Path]) -> None:
        self._kind = kind
        self._paths = {custom_id: sidecar_path(picture, kind) for custom_id, picture in pictures.items()}
        # Two pictures, or two questions about one, may have the same sidecar. It is that of the first.
        self._owners = {path: custom_id for custom_id, path in reversed(self._paths.items())}
        self.written = 0
        self.kept: set[Path] = set()
        self.faults: dict[Path, str] = {}

    def write(self, line: dict[str, Any]) -> None:
        """Write the sidecar of an answer, where there is none yet."""
        path, content = self._sidecar(line)
        if path is None or content is None:
            return
        try:
            if not path.is_symlink() and not path.exists():
                with new_file(path, synced=False) as file:
                    file.write(content)
                self.written += 1
            elif _content(path, len(content)) != content:
                self.kept.add(path)
        except OSError as error:
            self.faults[path] = error.strerror or str(error)

    def remove(self, line: dict[str, Any]) -> None:
        """Remove the sidecar of an answer that no longer counts, if it is ours."""
        path, content = self._sidecar(line)
        if path is None or content is None:
            return
        try:
            if _content(path, len(content)) == content:
                path.unlink()
        except OSError as error:
            self.faults[path] = error.strerror or str(error)

    def _sidecar(self, line: dict[str, Any]) -> tuple[Path | None, bytes | None]:
        custom_id = line["custom_id"]
        path = self._paths.get(custom_id)
        text = (answer_text(line) or "").strip()
        if path is None or not text:
            return None, None
        if self._owners[path] != custom_id:
            self.kept.add(path)
            return None, None
        return path, sidecar(text, self._kind, str(line["response"]["body"].get("model", "")))


class WithSidecars:
    """Adds lines to `answers`, and then writes their sidecars."""

    def __init__(self, answers: Answers, sidecars: Sidecars) -> None:
        self._answers = answers
        self._sidecars = sidecars

    @property
    def done(self) -> set[str]:
        return self._answers.done

    def add(self, line: str) -> None:
        self._answers.add(line)
        self._sidecars.write(json.loads(line))


def sidecar_path(picture: Path, kind: Kind) -> Path:
    """Return IMG.txt, as programs for training expect, or IMG.jpg.xmp, which IMG.cr2 next to it does not share."""
    return picture.with_suffix(".txt") if kind == "txt" else picture.with_name(f"{picture.name}.xmp")


def sidecar(text: str, kind: Kind, model: str) -> bytes:
    """Return the content of a sidecar, UTF-8.

    Of an answer by a schema the caption is its `description` or `caption`; in XMP, `title` or `headline`, and
    `keywords` or `tags`, have their own properties.
    """
    fields = _fields(text)
    caption = next((fields[name] for name in _DESCRIPTION if isinstance(fields.get(name), str)), text)
    if kind == "txt":
        return f"{caption.strip()}\n".encode("utf-8", "replace")
    title = next((fields[name] for name in _TITLE if isinstance(fields.get(name), str)), "")
    subject: list[Any] = next((fields[name] for name in _SUBJECT if isinstance(fields.get(name), list)), [])
    properties = [_property("dc:description", "Alt", [caption], ' xml:lang="x-default"')]
    if title:
        properties.append(_property("dc:title", "Alt", [title], ' xml:lang="x-default"'))
    if words := [word for word in subject if isinstance(word, str) and word]:
        properties.append(_property("dc:subject", "Bag", words))
    properties.append(f"   <photoshop:CaptionWriter>{_text(f'pocketvlm ({model})')}</photoshop:CaptionWriter>")
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            '<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="pocketvlm">',
            ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">',
            '  <rdf:Description rdf:about=""',
            '    xmlns:dc="http://purl.org/dc/elements/1.1/"',
            '    xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/">',
            *properties,
            "  </rdf:Description>",
            " </rdf:RDF>",
            "</x:xmpmeta>",
            "",
        ]
    ).encode()


def _property(name: str, container: str, texts: list[str], attribute: str = "") -> str:
    items = "".join(f"<rdf:li{attribute}>{_text(text)}</rdf:li>" for text in texts)
    return f"   <{name}><rdf:{container}>{items}</rdf:{container}></{name}>"


def _text(text: str) -> str:
    """Escape a text for XML 1.0, which has no control characters."""
    return escape(_NOT_XML.sub(" ", text.strip()), {"\r": "&#13;"})


def _fields(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _content(path: Path, size: int) -> bytes | None:
    """Return what a file has, of at most `size` bytes and one more; None where there is none."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(size + 1)
