"""A real server on loopback: the command itself, in a process of its own, with iota."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from filelock import FileLock
from PIL import Image

from pocketvlm import VLM
from pocketvlm.files.locate import locate
from pocketvlm.server.model_facts import read_facts
from pocketvlm.server.models import Models
from pocketvlm.server.served_model import ModelSource
from pocketvlm.server.settings import Settings

COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "serve"]
JS = Path(__file__).parent / "js"
KEYS = {"message", "type", "param", "code"}


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]
    told: str  # what it printed when it was ready
    log: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, body: Any, **options: Any) -> requests.Response:
        """`body` as JSON, NaN among it, which requests would refuse to send."""
        options = {"timeout": 60, **options}
        return requests.post(f"{self.base}/chat/completions", data=json.dumps(body), **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)

    def ask(self, content: Any, **fields: Any) -> dict[str, Any]:
        """The answer to one user message; must succeed."""
        reply = self.post({"messages": [{"role": "user", "content": content}], **fields})
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def stream(self, content: Any, **fields: Any) -> list[dict[str, Any]]:
        body = {"messages": [{"role": "user", "content": content}], "stream": True, **fields}
        with self.post(body, stream=True) as reply:
            assert reply.status_code == 200, reply.text
            lines = [line for line in reply.iter_lines(chunk_size=1) if line and not line.startswith(b":")]
        assert all(line.startswith(b"data: ") for line in lines)
        assert lines[-1] == b"data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/health").json()
        return found


Start = Callable[..., Server]


def start(*arguments: str, env: dict[str, str] | None = None) -> Server:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert process.stdout and process.stderr
    log: list[str] = []
    errors = process.stderr
    threading.Thread(target=lambda: log.extend(errors), daemon=True).start()
    told = ""
    while (line := process.stdout.readline()) and not line.startswith("curl"):
        told += line
    told += line
    found = re.search(r"(http://\S+)/v1 ", told)
    assert found, f"it did not start: {told}{''.join(log)}"
    return Server(found[1], process, told, log)


def stop(server: Server) -> int:
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(60)
    finally:
        server.process.kill()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Shared by all tests that change nothing about it."""
    running = start("--parallel", "1", "--read-timeout", "2", "--max-pixels", "2", "--log-json")
    yield running
    assert stop(running) == 0


@pytest.fixture
def serve() -> Iterator[Start]:
    """Starts a server of a test's own."""
    running: list[Server] = []

    def begin(*arguments: str, env: dict[str, str] | None = None) -> Server:
        running.append(start(*arguments, env=env))
        return running[-1]

    yield begin
    for one in running:
        stop(one)


def served(vlm: VLM, settings: Settings) -> Models:
    """The models of a server in this process: iota alone, loaded already."""
    models = Models([ModelSource(read_facts(locate(None, model=None, mmproj=None)), lambda: vlm)], settings)
    models.first.adopt(vlm)
    return models


def refused(reply: requests.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """The message of an answer that must be this error."""
    assert reply.status_code == status, f"{reply.status_code}: {reply.text[:300]}"
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == KEYS
    assert param is None or error["param"] == param, error
    assert code is None or error["code"] == code, error
    message: str = error["message"]
    assert message
    return message


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def sample_uri(sample_png: Path) -> str:
    return data_uri(sample_png.read_bytes())


def look(url: Any, text: str = "How many shapes are there?") -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]


@pytest.fixture(scope="session")
def npm() -> Path:
    """The folder with the installed npm packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("NO node ON THIS MACHINE: the clients and schemas from npm are NOT tested")
    modules = JS / "node_modules"
    stamp = modules / ".package-lock.json"
    with FileLock(JS / ".npm.lock"):  # the workers of pytest-xdist share the folder
        if not stamp.is_file() or stamp.stat().st_mtime < (JS / "package-lock.json").stat().st_mtime:
            done = subprocess.run(["npm", "ci"], cwd=JS, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, f"npm ci in {JS}: {done.stderr}"
    return modules
