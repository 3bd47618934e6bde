"""Pictures that are sent once and then named: POST, GET and DELETE /v1/images."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path

import openai
import pytest
import requests
from PIL import Image

from server.conftest import Server, Start, look, png, refused
from waiting import wait_until


def upload(server: Server, data: bytes, **options: object) -> requests.Response:
    return requests.post(f"{server.base}/images", data=data, timeout=60, **options)  # type: ignore[arg-type]


def test_sent_once_and_named(server: Server, sample_png: Path) -> None:
    data = sample_png.read_bytes()
    begin = int(time.time())
    told = upload(server, data).json()
    assert told["id"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (told["object"], told["width"], told["height"], told["bytes"]) == ("image", 640, 480, len(data))
    # Other tests of this server may have sent the picture before, which `created_at` remembers.
    assert told["created_at"] <= time.time()
    assert begin + 3600 <= told["expires_at"] <= time.time() + 3600
    for url in (told["id"], {"url": told["id"], "detail": "high"}):
        answer = server.ask(look(url))
        assert answer["choices"][0]["message"]["content"] == "2"
    streamed = server.stream(look(told["id"]))
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in streamed) == "2"
    assert server.get(f"/v1/images/{told['id']}").json()["expires_at"] >= told["expires_at"]


def test_deleted(server: Server) -> None:
    told = upload(server, png(Image.new("RGB", (20, 10), "red"))).json()
    path = f"{server.base}/images/{told['id']}"
    assert requests.delete(path, timeout=60).json() == {"id": told["id"], "object": "image", "deleted": True}
    for reply in (requests.delete(path, timeout=60), requests.get(path, timeout=60)):
        refused(reply, 404, "id", "image_not_found")
    body = {"messages": [{"role": "user", "content": look(told["id"])}]}
    for stream in (False, True):
        reply = server.post({**body, "stream": stream})
        assert "send the file again" in refused(reply, 404, "messages.0.content.1.image_url.url", "image_not_found")


@pytest.mark.parametrize("wrong", ["sha256:", "sha256:zz", "sha256:" + "0" * 64, "SHA256:../../etc/passwd"])
def test_unknown_handles(server: Server, wrong: str) -> None:
    body = {"messages": [{"role": "user", "content": look(wrong)}]}
    refused(server.post(body), 404, "messages.0.content.1.image_url.url", "image_not_found")


def test_what_is_no_picture(server: Server, sample_png: Path) -> None:
    refused(upload(server, b""), 400, code="invalid_image_format")
    refused(upload(server, b"hello"), 400, code="invalid_image_format")
    refused(upload(server, sample_png.read_bytes()[:2000]), 400, code="invalid_image_format")
    refused(upload(server, png(Image.new("1", (2000, 1001)))), 400, code="image_too_large")
    form = requests.post(f"{server.base}/images", files={"file": sample_png.read_bytes()}, timeout=60)
    assert "--data-binary" in refused(form, 415, code="unsupported_media_type")
    refused(requests.get(f"{server.base}/images", timeout=60), 405)
    refused(requests.put(f"{server.base}/images/sha256:00", timeout=60), 405)


def test_key_limits_expiry_and_log(serve: Start) -> None:
    own = serve("--api-key", "k", "--image-ttl", "1", "--image-count", "2", "--max-body", "1", "--log-json")
    key = {"Authorization": "Bearer k"}
    files = [png(Image.new("RGB", (20, 10), colour)) for colour in ("red", "green", "blue")]
    refused(upload(own, files[0]), 401)
    refused(requests.delete(f"{own.base}/images/sha256:00", timeout=60), 401)
    ids = [upload(own, data, headers=key).json()["id"] for data in files]
    refused(own.get(f"/v1/images/{ids[0]}", headers=key), 404, code="image_not_found")
    refused(upload(own, b"x" * 1_100_000, headers=key), 413)
    shown = own.get("/metrics", headers=key).text
    assert "pocketvlm_image_handles_bytes" in shown
    wait_until(lambda: own.get(f"/v1/images/{ids[2]}", headers=key).status_code != 200)
    refused(own.get(f"/v1/images/{ids[2]}", headers=key), 404, code="image_not_found")
    assert "pocketvlm_image_handles 0.0" in own.get("/metrics", headers=key).text
    assert not any(ids[2] in line for line in own.log)
    assert any(ids[2][:11] in line for line in own.log)
    own.get(f"/v1/images/{ids[2].replace(':', '%3A')}", headers=key)  # as encodeURIComponent writes it
    wait_until(lambda: any("%3A" in line for line in own.log))
    assert not any(ids[2][7:] in line for line in own.log)


def test_from_openai(server: Server, sample_png: Path) -> None:
    client = openai.OpenAI(base_url=server.base, api_key="none")
    told = client.post("/images", content=sample_png.read_bytes(), cast_to=dict[str, object])
    content = [
        {"type": "image_url", "image_url": {"url": told["id"]}},
        {"type": "text", "text": "How many shapes are there?"},
    ]
    answer = client.chat.completions.create(model="iota", messages=[{"role": "user", "content": content}])  # type: ignore[list-item,misc]
    assert answer.choices[0].message.content == "2"


def test_tiles_are_counted(serve: Start) -> None:
    own = serve("--parallel", "1")
    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(buffer, "PNG")
    id = upload(own, buffer.getvalue()).json()["id"]
    own.ask(look(id))
    own.ask([{"type": "text", "text": "Hello."}, *look(id)])
    shown = own.get("/metrics").text
    assert 'pocketvlm_tiles_total{cache="none"} 1.0' in shown
    assert 'pocketvlm_tiles_total{cache="memory"} 1.0' in shown
