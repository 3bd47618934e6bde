"""Handles of pictures: limits, expiry, and what a message says with one."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine_seam import prompt_of
from pdfs import pdf, rectangle
from pocketvlm import VLM
from pocketvlm.errors import ImageFormatError, ImageNotFoundError, ImageTooLargeError, RequestError
from pocketvlm.messages import ImageURLPart
from pocketvlm.pictures.handles import HandleLimits, PictureHandles


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def part(url: str) -> ImageURLPart:
    return ImageURLPart.model_validate({"type": "image_url", "image_url": url})


def test_a_handle_is_the_hash_of_the_file() -> None:
    handles = PictureHandles(clock=Clock())
    told = handles.add(b"data", (4, 3))
    assert told.id == "sha256:" + hashlib.sha256(b"data").hexdigest()
    assert (told.width, told.height, told.bytes) == (4, 3, 4)
    assert (told.created_at, told.expires_at) == (1000, 4600)
    assert handles.add(b"data", (4, 3)) == told == handles.find(told.id.upper().replace("SHA256:", "sha256:"))
    assert handles.held() == (1, 4)
    assert handles.use(told.id, "p") == (b"data", 1)
    assert handles.add(b"many", (4, 3), 12).pages == 12 and handles.use(told.id, "p") == (b"data", 1)


def test_expiry() -> None:
    clock = Clock()
    handles = PictureHandles(HandleLimits(seconds=10), clock)
    used, unused = handles.add(b"used", (1, 1)), handles.add(b"unused", (1, 1))
    clock.now = 1009
    handles.use(used.id, "p")
    assert handles.find(used.id).expires_at == 1019
    clock.now = 1010
    for wrong in (unused.id, "sha256:", "sha256:" + "0" * 64):
        with pytest.raises(ImageNotFoundError, match="send the file again") as caught:
            handles.use(wrong, "messages.0.content.1.url")
        assert caught.value.param == "messages.0.content.1.url"
    assert handles.held() == (1, 4)
    handles.remove(used.id)
    assert handles.held() == (0, 0)
    with pytest.raises(ImageNotFoundError):
        handles.remove(used.id)


def test_limits_hold() -> None:
    rng = Random(0)
    handles = PictureHandles(HandleLimits(count=7, size=2000))
    for number in range(500):
        data = rng.randbytes(rng.randrange(1, 600))
        told = handles.add(data, (1, 1))
        count, size = handles.held()
        assert count <= 7 and size <= 2000
        assert sum(len(entry.data) for entry in handles._entries.values()) == size
        assert handles.find(told.id).bytes == len(data), number
    with pytest.raises(ImageTooLargeError, match="2,001"):
        handles.add(b"x" * 2001, (1, 1))
    with pytest.raises(ImageTooLargeError, match="no files are kept"):
        PictureHandles(HandleLimits(count=0)).add(b"x", (1, 1))
    for wrong in ({"seconds": 0}, {"seconds": float("inf")}, {"count": -1}, {"size": -1}):
        with pytest.raises(RequestError):
            HandleLimits(**wrong)  # type: ignore[arg-type]


def test_who_was_used_last_stays() -> None:
    handles = PictureHandles(HandleLimits(count=2))
    first, second = (handles.add(data, (1, 1)).id for data in (b"1", b"2"))
    handles.use(first, "p")
    handles.add(b"3", (1, 1))
    handles.find(first)
    with pytest.raises(ImageNotFoundError):
        handles.find(second)


def test_in_python(iota_bundle: Path, sample_png: Path, tmp_path: Path) -> None:
    with VLM.load(iota_bundle, threads=1, handle_limits=HandleLimits(count=8)) as vlm:
        data = sample_png.read_bytes()
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        given: list[Any] = [data, sample_png, str(sample_png), picture, np.asarray(picture)]
        ids = [vlm.add_image(one).id for one in given]
        assert ids[:3] == ["sha256:" + hashlib.sha256(data).hexdigest()] * 3
        assert ids[3] == ids[4] != ids[0]
        told = []
        for id in (ids[0], ids[4]):
            for image in ({"type": "image_url", "image_url": {"url": id}}, {"type": "image", "url": id}):
                content = [image, {"type": "text", "text": "How many shapes are there?"}]
                answer = vlm.chat([{"role": "user", "content": content}])
                assert answer.text == "2"
                told.append(answer.timings.images[0].cache)
        assert told == ["none", "kv", "kv", "kv"], "equal pixels are one picture"
        vlm.remove_image(ids[0])
        question = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ids[0], "detail": "low"}}]}]
        with pytest.raises(ImageNotFoundError) as caught:
            vlm.chat(question)
        assert caught.value.param == "messages.0.content.0.image_url.url"
        shown = {"type": "image_url", "image_url": {"url": ids[4], "detail": "low"}}
        low = prompt_of(vlm, [{"role": "user", "content": [shown]}])
        assert [piece.detail for piece in low if hasattr(piece, "detail")] == ["low"]
        (tmp_path / "text.png").write_text("no picture")
        with pytest.raises(ImageFormatError, match=r"text\.png"):
            vlm.add_image(tmp_path / "text.png")


def test_documents_in_python(iota_bundle: Path, tmp_path: Path) -> None:
    """By a path, by bytes and by a data: URI; errors name the file."""
    colours = ("0.86 0.12 0.12", "0.12 0.3 0.86")
    data = pdf([rectangle(colour, 30, 30, 40, 40) for colour in colours], box="[0 0 100 100]")
    (tmp_path / "squares.pdf").write_bytes(data)
    uri = "data:application/pdf;base64," + base64.b64encode(data).decode()
    with VLM.load(iota_bundle, threads=1, context_size=1024) as vlm:
        kept = [vlm.add_image(one) for one in (tmp_path / "squares.pdf", data, uri)]
        assert {one.id for one in kept} == {"sha256:" + hashlib.sha256(data).hexdigest()}
        assert (kept[0].pages, kept[0].width, kept[0].height) == (2, 208, 208)
        for page, answer in ((1, "Red"), (2, "Blue")):
            content = [{"type": "image", "url": f"{kept[0].id}#page={page}"}, "What colour is the square?"]
            assert vlm.chat([{"role": "user", "content": content}]).text == answer
        assert len(vlm.count_tokens([{"role": "user", "content": [{"type": "file", "url": kept[0].id}]}]).images) == 2
        conversation = [{"role": "user", "content": [{"type": "image", "url": f"{kept[0].id}#page=2"}, "What?"]}]
        vlm.chat(conversation)
        assert vlm.conversation[0]["content"][0]["url"] == f"{kept[0].id}#page=2"
        vlm.save(tmp_path / "talk")
        vlm.remove_image(kept[0].id)
        assert vlm.restore(tmp_path / "talk")[0]["content"][0] == {"type": "text", "text": "Page 2 of 2:"}
        (tmp_path / "junk.pdf").write_bytes(b"%PDF-1.7 junk")
        with pytest.raises(ImageFormatError, match=r"junk\.pdf: damaged") as caught:
            vlm.add_image(tmp_path / "junk.pdf")
        assert caught.value.param == "image"
