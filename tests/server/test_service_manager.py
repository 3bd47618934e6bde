"""What a service manager does: it passes on a listening socket, waits for the start, and restarts the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests

from pocketvlm.errors import RequestError
from pocketvlm.server.run import adopt
from pocketvlm.server.service_manager import notify, passed_sockets
from pocketvlm.server.settings import Settings
from server.conftest import COMMAND

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the protocols are those of systemd")
HI = [{"role": "user", "content": "hi"}]
# The parent's part: the socket becomes file descriptor 3, and the variables name the process that is to have it.
PASS_ON = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as sock:
        yield sock


def begin(listener: socket.socket, notified: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A server on `listener`, as systemd starts it."""
    number = listener.fileno()
    return subprocess.Popen(
        [sys.executable, "-c", PASS_ON, str(number), *COMMAND, "--grace", "240", *arguments],
        pass_fds=(number,),
        env={**os.environ, "NOTIFY_SOCKET": str(notified)},
        stdout=subprocess.DEVNULL,
    )


@contextmanager
def manager(path: Path) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(str(path))
        sock.settimeout(240)
        yield sock


@pytest.mark.slow
def test_a_restart_loses_no_request(listener: socket.socket, tmp_path: Path) -> None:
    """Clients ask all the time, on new connections and kept ones, and an answer runs while the server is replaced."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
    done = threading.Event()

    def ask_again_and_again(keep: bool) -> list[int]:
        """With http.client, which does not try again: a connection must say that it is closed."""
        answered: list[int] = []
        with closing(HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=240)) as connection:
            while not done.is_set():
                connection.request("POST", "/v1/chat/completions", json.dumps({"messages": HI, "max_tokens": 2}))
                reply = connection.getresponse()
                reply.read()
                answered.append(reply.status)
                if not keep:
                    connection.close()
        return answered

    def long_answer(begun: threading.Event) -> str:
        body: dict[str, Any] = {"messages": HI, "stream": True, "max_tokens": 400, "ignore_eos": True}
        with requests.post(url, json=body, stream=True, timeout=240) as reply:
            lines = []
            for line in reply.iter_lines(chunk_size=1):
                begun.set()
                lines.append(line)
        finish = [json.loads(line[6:])["choices"] for line in lines if line.startswith(b"data: {")]
        return str([choices[0]["finish_reason"] for choices in finish if choices][-1])

    with manager(tmp_path / "notify") as notified, ThreadPoolExecutor(4) as clients:
        first = begin(listener, tmp_path / "notify")
        second = None
        try:
            assert notified.recv(64) == b"READY=1"
            kept, new = clients.submit(ask_again_and_again, True), clients.submit(ask_again_and_again, False)
            begun = threading.Event()
            long = clients.submit(long_answer, begun)
            assert begun.wait(240)
            first.send_signal(signal.SIGTERM)
            assert notified.recv(64) == b"STOPPING=1"
            second = begin(listener, tmp_path / "notify")
            assert notified.recv(64) == b"READY=1"
            assert first.wait(240) == 0
            assert long.result(240) == "length"
            before = requests.post(url, json={"messages": HI, "max_tokens": 2}, timeout=240)
            assert before.status_code == 200  # the second server
            done.set()
            for answered in (kept.result(240), new.result(240)):
                assert set(answered) == {200}
        finally:
            done.set()
            for process in filter(None, (first, second)):
                process.terminate()
                process.wait(60)


def test_sockets_of_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert passed_sockets() == []
    assert "LISTEN_FDS" not in os.environ


def test_what_is_not_a_listening_socket_is_refused() -> None:
    """In a process of its own, where file descriptor 3 can be anything."""
    program = (
        "import os, sys, socket; from pocketvlm.errors import PocketVLMError\n"
        "from pocketvlm.server.service_manager import passed_sockets\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "{}\n"
        "try: passed_sockets()\n"
        "except PocketVLMError as error: print(error)\n"
    )
    for setup, message in (
        ("os.dup2(os.open('/dev/null', os.O_RDONLY), 3)", "is not a socket"),
        ("s = socket.socket(); os.dup2(s.fileno(), 3)", "not a TCP socket that listens"),
        ("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); os.dup2(s.fileno(), 3)", "file descriptor 3"),
    ):
        command = [sys.executable, "-c", program.format(setup)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert message in shown.stdout, shown


def test_a_socket_for_other_machines_needs_a_key() -> None:
    with closing(socket.create_server(("0.0.0.0", 0))) as sock:
        with pytest.raises(RequestError, match="needs a key"):
            adopt([sock], Settings())
        settings = adopt([sock], Settings(api_key="secret"))
        assert (settings.host, settings.port) == sock.getsockname()


def test_no_service_manager_waits_for_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notify("READY=1")
