"""How the page is served: headers, keys, and what it adds to the API. Needs no browser."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from page.conftest import drawing
from pocketvlm.files.gguf_header import read_header
from pocketvlm.files.locate import locate
from pocketvlm.server import page
from pocketvlm.vision import families
from server.conftest import Server, refused, start, stop

HTML = {"accept": "text/html,application/xhtml+xml"}


def test_the_page_and_its_files(server: Server) -> None:
    reply = server.get("/", headers=HTML)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().partition(" ")[::2] for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in str(policy) and "http" not in str(policy)
    for name, kind in (("main.js", "text/javascript"), ("main.css", "text/css"), ("icon.svg", "image/svg+xml")):
        assert f"page/{name}" in reply.text
        one = server.get(f"/page/{name}")
        assert one.headers["content-type"].startswith(kind)
        assert one.headers["x-content-type-options"] == "nosniff"
        again = server.get(f"/page/{name}", headers={"if-none-match": one.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert server.get(f"/page/{name}", headers={"if-none-match": '"x"'}).content == one.content
        assert requests.head(f"{server.url}/page/{name}", timeout=60).headers["etag"] == one.headers["etag"]
    refused(server.get("/page/nothing.js"), 404)
    assert server.get("/").text == "Ollama is running"


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py"]
)
def test_no_file_outside_of_its_folder_is_sent(server: Server, path: str) -> None:
    """Not by way of requests, which would shorten the path."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        assert reply.status == 404 and json.loads(reply.read())["error"]["code"] == "not_found"
    finally:
        connection.close()


def test_stray_files_are_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = Path(page.__file__).with_name("static")
    shutil.copytree(static, tmp_path / "static")
    (tmp_path / "static" / "folder.js").mkdir()
    for name in (".DS_Store", "main.js.map", "notes"):
        (tmp_path / "static" / name).write_bytes(b"")
    names = {"index.html", "main.js", "main.css", "icon.svg", "sample.png", "LICENSES.txt"}
    monkeypatch.setattr(page, "files", lambda _: tmp_path)
    assert page.Page().paths == {"/", *(f"/page/{name}" for name in names)}


def test_the_page_needs_no_key_and_all_else_does(keyed: Server) -> None:
    assert "pocketvlm" in keyed.get("/", headers=HTML).text
    assert keyed.get("/page/main.js").status_code == 200
    for path in ("/v1/models", "/v1/images/sha256:0/seen", "/page", "/page/nothing.js"):
        refused(keyed.get(path), 401)
    refused(keyed.get("/", headers={**HTML, "host": "evil.example"}), 403)


def test_only_its_own_origin_may_call(keyed: Server) -> None:
    key = {"authorization": "Bearer s3cret word"}
    body = {"width": 64, "height": 64}
    own = keyed.url
    for origin in (own, own.replace("http:", "https:"), own.upper().replace("HTTP", "http")):
        assert requests.post(f"{keyed.base}/images/plan", json=body, headers={**key, "origin": origin}).ok
    for origin in (own + "0", own.replace("127.0.0.1", "localhost"), "null", "", "http://evil.example", own + "/"):
        reply = requests.post(f"{keyed.base}/images/plan", json=body, headers={**key, "origin": origin})
        refused(reply, 403, code="origin_not_allowed")
    # Another name of this machine: the page there has that origin.
    host = f"localhost:{keyed.port}"
    headers = {**key, "host": host, "origin": f"http://{host}"}
    assert requests.post(f"{keyed.base}/images/plan", json=body, headers=headers).ok
    headers = {**key, "host": "evil.example", "origin": "http://evil.example"}
    refused(requests.post(f"{keyed.base}/images/plan", json=body, headers=headers), 403, code="host_not_allowed")


def test_without_the_page() -> None:
    own = start("--no-page", "--offline")
    try:
        refused(own.get("/", headers=HTML), 404)
        refused(own.get("/page/main.js"), 404)
        assert own.get("/").text == "Ollama is running"
        assert "browser" not in own.told
    finally:
        stop(own)


def test_a_plan_and_what_is_seen(server: Server) -> None:
    def plan(**question: object) -> requests.Response:
        return requests.post(f"{server.base}/images/plan", json=question, timeout=60)

    assert plan(width=4000, height=3000).json() == {
        "object": "image.plan",
        "model": "iota",
        "original_size": [4000, 3000],
        "used_size": [192, 192],
        "canvas_size": [192, 192],
        "grid": [2, 2],
        "tiles": 5,
        "tokens": 80,
        "shrunk": True,
    }
    low = plan(width=4000, height=3000, detail="low").json()
    assert (low["grid"], low["tiles"], low["tokens"]) == ([1, 1], 1, 16)
    assert plan(width=4000, height=3000, max_image_tokens=50).json()["tokens"] <= 50
    refused(plan(width=4000, height=3000, max_image_tokens=3), 400, "max_image_tokens")
    refused(plan(width=0, height=3000), 400, "width")
    refused(plan(width=10), 400, "height")
    refused(plan(width=900_000, height=900_000), 400, "width")
    refused(plan(width=10, height=10, depth=10), 400)

    picture = drawing(5, (500, 300))
    refused(server.get(f"/v1/images/sha256:{hashlib.sha256(picture).hexdigest()}/seen"), 404, code="image_not_found")
    id = requests.post(f"{server.base}/images", data=picture, timeout=60).json()["id"]
    reply = server.get(f"/v1/images/{id}/seen")
    assert reply.headers["content-type"] == "image/png"
    seen = np.asarray(Image.open(io.BytesIO(reply.content)))
    located = locate(None, model=None, mmproj=None)
    assert located.mmproj is not None
    known = families.find(read_header(located.mmproj).metadata)
    assert known is not None
    family = known[1]
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    tiles = family.tiles(pixels, family.plan((500, 300), "auto", None))
    edge = len(tiles[0])
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        place = seen[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
        assert (place == tiles[2 * row + column]).all()
    low_seen = server.get(f"/v1/images/{id}/seen?detail=low&model=iota").content
    assert Image.open(io.BytesIO(low_seen)).size == (edge, edge)
    refused(server.get(f"/v1/images/{id}/seen?page=2"), 400, "page")
    refused(server.get(f"/v1/images/{id}/seen?detail=best"), 400, "detail")
    refused(server.get(f"/v1/images/{id}/seen?max_image_tokens=x"), 400, "max_image_tokens")


def test_the_app(tmp_path: Path) -> None:
    """It opens the page before the model is loaded, on a port that is the same every time, and ends with Ctrl-C."""
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "app", "--offline"]
    env = {**os.environ, "BROWSER": str(browser)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        said = process.stdout.readline()
        found = re.fullmatch(r"pocketvlm is at (http://127\.0\.0\.1:84[78]\d) \(Ctrl-C stops it\)\.\n", said)
        assert found, said
        assert "page/main.js" in requests.get(found[1], headers=HTML, timeout=60).text
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        answer = requests.post(f"{found[1]}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["timings"]["load_ms"] > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert opened.read_text().strip() == found[1]
