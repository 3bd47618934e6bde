"""Files of several pictures that are sent once: sha256:... is all of a PDF or video, sha256:...#page=3 one page."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from pages import write_video
from pdfs import pdf, rectangle
from server.conftest import Server, Start, png, refused
from server.test_documents import COLOURS, QUESTION, body, squares

URL = "messages.0.content.0.image_url.url"


def upload(server: Server, data: bytes, **options: Any) -> requests.Response:
    return requests.post(f"{server.base}/images", data=data, timeout=60, **options)


def scan(count: int = 3) -> bytes:
    """A TIFF of pages with a square each."""
    pages = []
    for index in range(count):
        page = Image.new("RGB", (100, 100), "white")
        page.paste(tuple(round(255 * float(level)) for level in COLOURS[index % 3].split()), (30, 30, 70, 70))
        pages.append(page)
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def clip(folder: Path) -> bytes:
    square = Image.new("RGB", (96, 96), "white")
    square.paste((31, 77, 219), (30, 30, 70, 70))
    write_video(folder / "clip.mp4", square)
    return (folder / "clip.mp4").read_bytes()


def image(url: str, **options: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **options}}


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_a_pdf_is_sent_once_and_its_pages_are_named(server: Server) -> None:
    data = squares()
    told = upload(server, data, headers={"Content-Type": "application/pdf"}).json()
    assert told["id"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (told["pages"], told["width"], told["height"], told["bytes"]) == (3, 208, 208, len(data))
    assert requests.get(f"{server.base}/images/{told['id']}", timeout=60).json()["pages"] == 3
    for page, colour in ((1, "Red"), (2, "Blue"), (3, "Green")):
        answer = server.ask([image(f"{told['id']}#page={page}", detail="low"), QUESTION])
        assert text_of(answer) == colour
        [shown] = answer["timings"]["images"]
        assert shown["pages"] == 3 and shown["used_size"] == shown["original_size"]
    whole = server.ask([image(told["id"]), QUESTION])
    assert [one["pages"] for one in whole["timings"]["images"]] == [3, 3, 3]
    sent = server.ask([{"type": "file", "file": {"file_data": uri(data)}}, QUESTION])
    assert whole["usage"]["prompt_tokens"] == sent["usage"]["prompt_tokens"]


def uri(data: bytes) -> str:
    import base64

    return "data:application/pdf;base64," + base64.b64encode(data).decode()


def test_other_files_of_several(server: Server, tmp_path: Path) -> None:
    told = upload(server, scan()).json()
    assert (told["pages"], told["width"], told["height"]) == (3, 100, 100)
    assert text_of(server.ask([image(f"{told['id']}#page=2"), QUESTION])) == "Blue"
    first = server.ask([image(told["id"]), QUESTION])  # as where the file itself is sent
    assert text_of(first) == "Red" and len(first["timings"]["images"]) == 1
    assert first["timings"]["images"][0]["notes"] == ['page 1 of 3 was seen; pages="1-3" shows all']
    told = upload(server, clip(tmp_path)).json()
    assert told["pages"] == 8
    for url, frames, count in ((told["id"], {"frames": 2}, 2), (f"{told['id']}#page=3", {}, 1)):
        answer = server.ask([{"type": "file", "url": url, **frames}, QUESTION])
        assert text_of(answer) == "Blue" and len(answer["timings"]["images"]) == count


def test_in_every_api(server: Server) -> None:
    page = upload(server, squares()).json()["id"] + "#page=2"
    text = QUESTION["text"]
    for part in (image(page), {"type": "image", "url": page}, {"type": "file", "file": {"file_id": page}}):
        assert text_of(server.ask([part, QUESTION])) == "Blue"
    for part in (
        {"type": "input_image", "image_url": page},
        {"type": "input_image", "file_id": page},
        {"type": "input_file", "file_url": page},
        {"type": "input_file", "file_id": page},
        {"type": "input_file", "file_id": page.partition("#")[0], "pages": "2"},
    ):
        content = [part, {"type": "input_text", "text": text}]
        answer = requests.post(f"{server.base}/responses", json={"input": [{"role": "user", "content": content}]})
        assert answer.json()["output"][0]["content"][0]["text"] == "Blue", part
    for kind in ("image", "document"):
        for source in ({"type": "url", "url": page}, {"type": "file", "file_id": page}):
            content = [{"type": kind, "source": source}, QUESTION]
            answer = requests.post(f"{server.base}/messages", json={"messages": [{"role": "user", "content": content}]})
            assert answer.json()["content"][0]["text"] == "Blue", (kind, source)
    for message in ({"role": "user", "content": text, "images": [page]},):
        for route in ("/api/chat", "/v1/chat/completions"):
            answer = requests.post(f"{server.url}{route}", json={"messages": [message], "stream": False}, timeout=60)
            told = answer.json()
            assert (told.get("message") or told["choices"][0]["message"])["content"] == "Blue", route
    generated = {"prompt": text, "images": [page], "stream": False}
    assert requests.post(f"{server.url}/api/generate", json=generated, timeout=60).json()["response"] == "Blue"


@pytest.mark.parametrize("fragment", ["page=0", "page=-1", "page=x", "page=", "", "page=1,2", "2", "page=1#page=2"])
def test_what_names_no_page(server: Server, fragment: str) -> None:
    id = upload(server, squares()).json()["id"]
    told = refused(server.post(body(image(f"{id}#{fragment}"))), 400, URL)
    assert told == f"{URL}: invalid page '#{fragment}'; use e.g. #page=3, counted from 1"


def test_pages_that_are_not_there(server: Server) -> None:
    document, plain = (upload(server, data).json()["id"] for data in (squares(), png(Image.new("RGB", (9, 9)))))
    told = refused(server.post(body(image(f"{document}#page=4"))), 400, URL, "invalid_image")
    assert told == f"{URL}: {document[:19]}: there is no page 4; it has 3"
    for page in ("1", "2"):
        told = refused(server.post(body(image(f"{plain}#page={page}"))), 400, URL)
        assert "the file is one picture, without pages; leave out" in told
    both = {"type": "file", "url": f"{document}#page=1", "pages": "2"}
    told = refused(server.post(body(both)), 400, "messages.0.content.0.pages")
    assert "cannot be combined with '#page=1'" in told
    for stream in (False, True):
        unknown = {**body(image("sha256:" + "0" * 64 + "#page=1")), "stream": stream}
        refused(server.post(unknown), 404, URL, "image_not_found")
    responses = {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": f"{document}#page=9"}]}]}
    reply = requests.post(f"{server.base}/responses", json=responses, timeout=60)
    refused(reply, 400, "input.0.content.0.file_id", "invalid_image")


def test_what_is_not_kept(server: Server, tmp_path: Path) -> None:
    for data, code, reason in (
        (b"%PDF-1.7 junk", "invalid_image_format", "bytes: damaged or truncated, or without pages"),
        (pdf([]), "invalid_image_format", "without pages"),
        (squares(password="secret"), "password_required", "is encrypted; give its password"),
        (pdf([b""], box="[0 0 28346 500]"), "image_too_large", "page 1: 10.0 x 0.2 m is too large"),
        (clip(tmp_path)[:300], "invalid_image_format", "damaged or truncated, or not a video"),
    ):
        assert reason in refused(upload(server, data), 400, None, code)
    # One page that cannot be drawn does not lose the others.
    whole = squares().replace(b"10 0 obj\n<< /Type /Page ", b"10 0 obj\n[ /Type /Page  ")
    told = upload(server, whole).json()
    assert (told["pages"], told["width"], told["height"]) == (3, 0, 0)
    assert text_of(server.ask([image(f"{told['id']}#page=2"), QUESTION])) == "Blue"
    refused(server.post(body(image(f"{told['id']}#page=1"))), 400, URL, "invalid_image_format")


def test_limits(serve: Start) -> None:
    limits = ("--max-pages", "2", "--page-seconds", "0.3", "--image-count", "2", "--image-store", "1")
    server = serve(*limits)
    told = upload(server, squares(3000)).json()
    assert told["pages"] == 3000  # a request may show two of them
    reply = server.post(body(image(told["id"])))
    assert "has 3,000 pages; a request may show at most 2" in refused(reply, 400, URL, "image_too_large")
    assert text_of(server.ask([image(f"{told['id']}#page=2999"), QUESTION])) in ("Red", "Blue", "Green")
    slow = b"".join(rectangle(f"{x % 7 / 7} 0 0", 0, 0, 100, 100) for x in range(500_000))
    assert "it takes more than 0.3 s to decode" in refused(upload(server, pdf([slow], box="[0 0 100 100]")), 400)
    others = [upload(server, squares(count)).json()["id"] for count in (1, 2)]
    refused(server.get(f"/v1/images/{told['id']}"), 404, code="image_not_found")  # evicted
    assert server.get(f"/v1/images/{others[0]}").status_code == 200
    assert "over the limit of 1,048,576" in refused(upload(server, squares(9000)), 400, None, "image_too_large")


def test_counting_reads_no_pixels(server: Server) -> None:
    document = upload(server, squares()).json()["id"]
    for parts in ([image(document)], [image(f"{document}#page=2", detail="high")], [{"type": "file", "url": document}]):
        request = body(*parts)
        tokens = server.post({**request, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
        reply = requests.post(f"{server.base}/chat/completions/input_tokens", json=request, timeout=60)
        assert reply.json()["input_tokens"] == tokens
