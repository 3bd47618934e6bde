"""Safe by default: who is let in, what is logged, what the command refuses to start with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from typer.testing import CliRunner

from pocketvlm.cli.commands import app
from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.server.run import listen
from pocketvlm.server.settings import Settings
from pocketvlm.system import offline
from server.conftest import COMMAND, Server, Start, look, refused

HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "localhost", "[::1]:{port}", "LOCALHOST"])
def test_own_hosts(server: Server, host: str) -> None:
    assert server.get("/health", headers={"host": host.format(port=server.port)}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_foreign_hosts(server: Server, host: str) -> None:
    """A page whose name was pointed at this machine must not reach the server."""
    for path in ("/health", "/v1/models"):
        reply = server.get(path, headers={"host": host.format(port=server.port)})
        refused(reply, 403, code="host_not_allowed")


def test_web_pages_stay_out(server: Server) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999"):
        reply = server.post(HI, headers={"origin": origin})
        refused(reply, 403, code="origin_not_allowed")
        assert "access-control-allow-origin" not in reply.headers
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    refused(requests.options(f"{server.base}/chat/completions", headers=preflight, timeout=60), 403)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_load_nothing(server: Server, site: str) -> None:
    """Such as a picture, for which browsers send no origin: its size would say what was uploaded."""
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    for path in ("/v1/images/sha256:0/seen", "/v1/models", "/page/icon.svg", "/"):
        refused(server.get(path, headers=headers), 403, code="origin_not_allowed")
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert server.get("/", headers=link).status_code == 200
    refused(server.get("/v1/models", headers=link), 403, code="origin_not_allowed")


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_page_and_people_load_what_they_want(server: Server, site: str) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
    for path in ("/", "/page/icon.svg", "/v1/models"):
        assert server.get(path, headers=headers).status_code == 200


def test_browsers_keep_answers_from_other_sites(server: Server) -> None:
    for path in ("/", "/page/icon.svg", "/v1/models", "/v1/images/sha256:0/seen", "/nothing"):
        headers = server.get(path).headers
        assert headers["cross-origin-resource-policy"] == "same-origin", path
        assert headers["x-content-type-options"] == "nosniff", path
    assert server.post(HI).headers["cross-origin-resource-policy"] == "same-origin"


def test_key_hosts_and_origins(serve: Start) -> None:
    key = {"POCKETVLM_API_KEY": "s3cret"}
    own = serve(
        "--allow-origin",
        "https://page.example",
        "--allowed-host",
        "box.local",
        "--alias",
        "mine",
        "--strict-model",
        env=key,
    )
    assert "s3cret" not in own.told
    assert "$POCKETVLM_API_KEY" in own.told
    good = {"authorization": "Bearer s3cret"}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}, {"authorization": "é"}):
        reply = own.post(HI, headers={name: value.encode() for name, value in headers.items()})
        assert "s3cret" not in refused(reply, 401, code="invalid_api_key")
        assert reply.json()["error"]["type"] == "authentication_error"
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            refused(own.get(path, headers={"authorization": "Bearer s3cre"}), 401)
    assert own.get("/health").status_code == 200
    assert own.get("/v1/models", headers=good).json()["data"][0]["id"] == "mine"
    for model in ("iota", "gpt-4o", own.url):
        assert "mine" in refused(own.post({**HI, "model": model}, headers=good), 404, "model", "model_not_found")
    for name in (None, "", "dummy", "mine"):
        assert own.post({**HI, "model": name, "max_tokens": 1}, headers=good).status_code == 200
    assert own.get("/health", headers={"host": "box.local:1"}).status_code == 200
    page = {"origin": "https://page.example"}
    preflight = requests.options(
        f"{own.base}/chat/completions",
        headers={**page, "access-control-request-method": "POST", "access-control-request-headers": "authorization"},
        timeout=60,
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == page["origin"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    answer = own.post(HI, headers={**good, **page})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page["origin"])
    assert "access-control-allow-origin" in own.post(HI, headers=page).headers  # a page can read why it was refused
    refused(own.post(HI, headers={**good, "origin": "https://other.example"}), 403)


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--host", "::", "--port", "0"], "--api-key"),
        (["--host", "192.168.1.5"], "POCKETVLM_API_KEY"),
        (["--host", "somewhere.example"], "--api-key"),
        (["--api-key", "k "], "--api-key: must be printable ASCII"),
        (["--port", "99999"], "--port"),
        (["--queue", "-1"], "--queue"),
        (["--allow-origin", "page.example"], "--allow-origin"),
        (["--allowed-host", "http://box"], "--allowed-host"),
        (["--image-ttl", "-1"], "--image-ttl"),
        (["--grace", "nan"], "--grace"),
        (["--log-level", "loud"], "--log-level"),
        (["--offline", "--allow-image-host", "example.org"], "--offline"),
        (["--offline", "--host", "0.0.0.0", "--api-key", "k"], "--offline"),
        (["--model", "nowhere", "--port", "0"], "nowhere"),
        (["--vision", "blurred", "--port", "0"], "vision"),
    ],
)
def test_wrong_use(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_a_header_cannot_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("", " ", "k ", " k", "\tk", "a\tb", "k\n", "a\x7fb", "schlüssel"):
        with pytest.raises(RequestError, match="must be printable ASCII without blanks at its ends"):
            Settings(api_key=key)
    assert Settings(api_key="a b~!").api_key == "a b~!"
    for key in ("", "k "):
        monkeypatch.setenv("POCKETVLM_API_KEY", key)
        done = CliRunner().invoke(app, ["serve", "--allow-origin", "page.example"])
        assert isinstance(done.exception, RequestError) and done.exception.param == "--api-key"


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port))
        assert done.returncode == 2
        assert f"port {port}" in done.stderr
        with pytest.raises(PocketVLMError, match=str(port)):
            listen(Settings(port=port))


def test_a_key_is_demanded_before_anything_listens() -> None:
    with pytest.raises(RequestError, match="needs a key"):
        Settings(host="0.0.0.0")
    Settings(host="0.0.0.0", api_key="k")
    for host in ("localhost", "127.0.0.1", "::1", "127.1.2.3"):
        Settings(host=host)


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from pocketvlm.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert 'pip install ".[server]"' in done.stderr


@pytest.mark.parametrize("how", ["enforce()", "enforce_if_requested()"])
def test_offline_proves_itself(how: str) -> None:
    """In a process without the tests' own block of the network; the second is how the engine's process begins."""
    begin = f"""
import socket, sys
from pocketvlm.system import offline
offline.{how}
"""
    code = """
for attempt in (
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: socket.gethostbyname("example.org"),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    lambda: socket.create_server(("0.0.0.0", 0)),
    lambda: socket.create_server(("", 0)),
    lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
):
    try:
        attempt()
    except offline.NetworkForbiddenError:
        continue
    sys.exit("it was let through")
with socket.create_server(("127.0.0.1", 0)) as own:
    socket.create_connection(own.getsockname(), timeout=5).close()
"""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if not path.endswith("tests/offline")]
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        env={**bare, "PYTHONPATH": os.pathsep.join(paths), offline.VARIABLE: "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_offline_serves(serve: Start, sample_uri: str) -> None:
    own = serve("--offline")
    assert own.ask(look({"url": sample_uri}))["choices"][0]["message"]["content"] == "2"


def test_nothing_that_was_said_is_written_down(
    serve: Start, sample_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No content in the log, at its loudest, and no new file."""
    monkeypatch.chdir(tmp_path)
    own = serve("--log-json", "--log-level", "debug")
    word = "zebrafish"
    own.ask(look({"url": sample_uri}, word), user=word, metadata={word: word})
    refused(own.post({"messages": [{"role": "user", "content": word}], word: word}), 400)
    refused(own.post({"messages": [{"role": "user", "content": look(f"data:{word}")}]}), 400)
    refused(requests.post(f"{own.base}/chat/completions", data=word, timeout=60), 400)
    own.get(f"/v1/models?name={word}")
    own.stream(word, max_tokens=2)
    until = time.monotonic() + 30
    while sum("/v1/chat/completions" in line for line in own.log) < 5 and time.monotonic() < until:
        time.sleep(0.05)
    text = "".join(own.log)
    assert word not in text
    assert sample_uri[30:60] not in text
    records: list[dict[str, Any]] = [json.loads(line) for line in own.log]
    asked = [record for record in records if record.get("path") == "/v1/chat/completions"]
    # An answer is read before its record is written: the next request's may come first.
    assert sorted(record["status"] for record in asked) == [200, 200, 400, 400, 400]
    (looked,) = [record for record in asked if record.get("images")]
    assert looked["images"] == 1
    assert looked["prompt_tokens"] > looked["image_tokens"] > 0
    assert {"request_id", "method", "ms", "queue_ms", "prefill_ms", "decode_ms", "first_token_ms"} <= set(looked)
    assert list(tmp_path.iterdir()) == []
