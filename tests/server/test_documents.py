"""PDFs over HTTP: as OpenAI's clients send them, within limits."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from PIL import Image

from pdfs import pdf, rectangle
from pocketvlm.documents.expand import expanded
from pocketvlm.documents.fit import printed_size
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import ImageTooLargeError
from pocketvlm.messages import ChatRequest, ImagePart, ImageURLPart
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.pictures.known_files import KnownFiles
from pocketvlm.server.pictures import Pictures
from pocketvlm.server.remote import Fetcher
from pocketvlm.server.settings import Settings
from server.conftest import Server, Start, refused

COLOURS = ("0.86 0.12 0.12", "0.12 0.3 0.86", "0.1 0.6 0.2")
QUESTION = {"type": "text", "text": "What colour is the square?"}


def uri(data: bytes) -> str:
    return "data:application/pdf;base64," + base64.b64encode(data).decode()


def squares(count: int = 3, **options: Any) -> bytes:
    pages = [rectangle(COLOURS[index % 3], 30, 30, 40, 40) for index in range(count)]
    return pdf(pages, box="[0 0 100 100]", **options)


def body(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts, QUESTION]}]}


def file(data: bytes, **options: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"filename": "squares.pdf", "file_data": uri(data)}, **options}


def test_a_file_of_openais_client(server: Server) -> None:
    client = openai.OpenAI(base_url=server.base, api_key="x")
    content: Any = [file(squares(), pages="2"), QUESTION]
    answer = client.chat.completions.create(model="iota", messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == "Blue"
    whole = server.ask([file(squares()), QUESTION])
    assert [image["pages"] for image in whole["timings"]["images"]] == [3, 3, 3]
    assert (
        "".join(
            chunk["choices"][0]["delta"]["content"] for chunk in server.stream([file(squares(), pages="2"), QUESTION])
        )
        == "Blue"
    )


def test_a_file_in_other_apis(server: Server) -> None:
    data, text = squares(1), QUESTION["text"]
    for kind, value in (("file_data", uri(data)), ("file_url", uri(data))):
        content: Any = [{"type": "input_file", "filename": "a.pdf", kind: value}, {"type": "input_text", "text": text}]
        answer = requests.post(f"{server.base}/responses", json={"input": [{"role": "user", "content": content}]})
        assert answer.json()["output"][0]["content"][0]["text"] == "Red"
    base64_source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(data).decode()}
    for source in (base64_source, {"type": "url", "url": uri(data)}):
        content = [{"type": "document", "source": source}, QUESTION]
        answer = requests.post(f"{server.base}/messages", json={"messages": [{"role": "user", "content": content}]})
        assert answer.json()["content"][0]["text"] == "Red"


def test_what_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(squares())
    at = "messages.0.content.0.file.file_data"
    for part, param, code, reason in (
        (file(b"%PDF-1.7 junk"), at, "invalid_image_format", "squares.pdf: damaged or truncated"),
        (file(squares(password="secret")), at, "password_required", "is encrypted; give its password"),
        (file(squares(), pages="9"), at, "invalid_image", "there is no page 9; it has 3"),
        (file(squares(), pages="a"), "messages.0.content.0.pages", None, "invalid pages 'a'"),
        (file(b"text"), at, "invalid_image_format", "is not a picture of a supported format"),
        (
            {"type": "file", "path": str(tmp_path / "a.pdf")},
            "messages.0.content.0.path",
            "invalid_image",
            "is for Python only",
        ),
        (
            {"type": "image_url", "image_url": {"url": str(tmp_path / "a.pdf")}},
            "messages.0.content.0.image_url.url",
            "invalid_image",
            "files are not read here",
        ),
    ):
        assert reason in refused(server.post(body(part)), 400, param, code)
    answer = server.ask([file(squares(password="secret"), pages="1", password="secret"), QUESTION])
    assert answer["choices"][0]["message"]["content"] == "Red"


def test_timings_name_the_part_that_shows_a_picture(server: Server, sample_uri: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": sample_uri}}
    answer = server.ask([QUESTION, file(squares(), pages="1-2"), picture])
    parts = [image["part"] for image in answer["timings"]["images"]]
    assert parts == ["messages.0.content.1", "messages.0.content.1", "messages.0.content.2"]


def test_limits(serve: Start) -> None:
    server = serve("--max-pages", "2", "--page-seconds", "0.3")
    reply = server.post(body(file(squares())))
    assert "has 3 pages; a request may show at most 2" in refused(
        reply, 400, "messages.0.content.0.file.file_data", "image_too_large"
    )
    slow = b"".join(rectangle(f"{x % 7 / 7} 0 0", 0, 0, 100, 100) for x in range(500_000))
    reply = server.post(body(file(pdf([slow], box="[0 0 100 100]"))))
    assert "page 1: cannot be drawn: it takes more than 0.3 s to decode" in refused(reply, 400)
    assert server.ask([file(squares(2), pages="2"), QUESTION])["choices"][0]["message"]["content"] == "Blue"


def frames(count: int) -> bytes:
    """A TIFF of pages of 96x64."""
    pages = [Image.new("RGB", (96, 64), (0, 0, number)) for number in range(count)]
    data = io.BytesIO()
    pages[0].save(data, "TIFF", save_all=True, append_images=pages[1:])
    return data.getvalue()


def test_the_pixels_of_pages_are_counted() -> None:
    """A request may have as many as 32 of the largest pictures."""
    settings = Settings(max_pixels=96 * 64)
    part = {"type": "file", "base64": base64.b64encode(frames(40)).decode()}
    for pages, refused_at in (("1-32", None), ("1-33", 33)):
        pictures = Pictures(settings, PictureHandles(), KnownFiles(), CancellationToken())
        request = ChatRequest.parse(body({**part, "pages": pages})["messages"])
        with expanded(request, pictures.open_file, lambda _: printed_size, settings.documents) as whole:
            images = [one for one in whole.request.messages[0].content or () if isinstance(one, ImagePart)]
            for number, image in enumerate(images, 1):
                if number == refused_at:
                    with pytest.raises(ImageTooLargeError, match="196,608 pixels together") as caught:
                        pictures.read(image, whole.param(0, 0))
                    assert caught.value.param == "messages.0.content.0.base64"
                else:
                    pictures.read(image, whole.param(0, 0))


def test_what_is_shown_again_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question of a decision shows the same pages and pictures."""
    settings = Settings(max_pixels=96 * 64, image_hosts=("pictures.test",))
    pictures = Pictures(settings, PictureHandles(), KnownFiles(), CancellationToken())
    fetched: list[str] = []

    def fetch(_self: Any, url: str, _param: str) -> bytes:
        fetched.append(url)
        return frames(1)

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    file = {"type": "file", "base64": base64.b64encode(frames(16)).decode()}
    url = "https://pictures.test/a.png"
    seen = []
    for _ in range(3):
        content = [{**file, "pages": "1-16"}, {"type": "image_url", "image_url": {"url": url}}]
        request = ChatRequest.parse([{"role": "user", "content": content}])
        with expanded(request, pictures.open_file, lambda _: printed_size, settings.documents) as whole:
            parts = whole.request.messages[0].content or ()
            images = [part for part in parts if isinstance(part, ImagePart | ImageURLPart)]
            seen.append([pictures.read(image, whole.param(0, 0)) for image in images])
    assert len(seen[0]) == len({id(picture) for picture in seen[0]}) == 17
    assert seen[0] == seen[1] == seen[2]
    assert fetched == [url]


def test_errors_of_a_handle_name_its_field(server: Server) -> None:
    handle = requests.post(f"{server.base}/images", data=frames(3), timeout=60).json()["id"]
    reply = server.post(body({"type": "file", "url": handle, "pages": "9"}))
    assert "there is no page 9; it has 3" in refused(reply, 400, "messages.0.content.0.url", "invalid_image")
