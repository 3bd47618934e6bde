"""Under way: queue, disconnects, slow clients, shutting down, metrics."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families

from engine_seam import never_ending
from pocketvlm.server import http_protocol
from server.conftest import KEYS, Server, Start, data_uri, look, png, refused, stop
from tiers import slow_but
from waiting import wait_until

HI = [{"role": "user", "content": "hi"}]
DISCONNECTS = int(os.environ.get("POCKETVLM_DISCONNECTS", "20"))
# The end of the answer is ruled out, so that it goes on until somebody stops it.
LONG = {"messages": HI, "n": 16, "stream": True, "temperature": 1, "seed": 1}


@pytest.fixture(scope="module")
def endless() -> dict[str, Any]:
    from pocketvlm import VLM

    with VLM.load() as vlm:
        return {**LONG, "logit_bias": {str(token): bias for token, bias in never_ending(vlm).items()}}


def idle(server: Server) -> bool:
    health = server.health()
    return health["running"] == health["waiting"] == 0


def metrics(server: Server) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
        if not sample.labels or sample.name.endswith("_count")
    }


class Running:
    """A stream that has begun."""

    def __init__(self, server: Server, body: dict[str, Any]) -> None:
        self._reply = server.post(body, stream=True)
        assert self._reply.status_code == 200
        self._lines = self._reply.iter_lines(chunk_size=1)
        assert next(self._lines).startswith(b"data: ")

    def last(self) -> bytes:
        """The last line that comes."""
        return [line for line in self._lines if line][-1]

    def close(self) -> None:
        self._reply.close()


def test_a_disconnect_frees_the_engine(server: Server, endless: dict[str, Any]) -> None:
    before = metrics(server)["pocketvlm_disconnects_total"]
    for _ in range(DISCONNECTS):
        Running(server, endless).close()
    wait_until(lambda: idle(server))
    assert server.ask("hi", max_tokens=1)
    # At least: what earlier tests left may be counted late.
    wait_until(lambda: metrics(server)["pocketvlm_disconnects_total"] >= before + DISCONNECTS)


def leave_without_an_answer(server: Server, body: dict[str, Any]) -> None:
    """Ask, disconnect once the engine works on it, and wait until that has stopped."""

    def works() -> bool:
        now = metrics(server)
        return now["pocketvlm_engine_running"] + now["pocketvlm_engine_encoding"] > 0

    wait_until(lambda: idle(server))  # what earlier tests left
    before = metrics(server)["pocketvlm_engine_cancelled_total"]
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as client:
        client.request("POST", "/v1/chat/completions", json.dumps(body))
        wait_until(works)
    wait_until(lambda: idle(server))
    wait_until(lambda: metrics(server)["pocketvlm_engine_cancelled_total"] >= before + 1)


def test_a_disconnect_of_a_request_that_does_not_stream(server: Server, endless: dict[str, Any]) -> None:
    leave_without_an_answer(server, {**endless, "n": 4, "stream": False})


def test_a_disconnect_while_waiting(server: Server, endless: dict[str, Any]) -> None:
    with closing(Running(server, endless)):
        with closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as client:
            client.request("POST", "/v1/chat/completions", json.dumps({"messages": HI}))
            wait_until(lambda: server.health()["waiting"] == 1)
        wait_until(lambda: server.health()["waiting"] == 0)
        assert server.health()["running"] == 1
    wait_until(lambda: idle(server))


def test_a_disconnect_before_the_first_token(server: Server, endless: dict[str, Any]) -> None:
    """While pictures are encoded: 18 of them, in full size, each one another; a fast machine has begun its answer."""
    noise = [Image.effect_noise((192, 192), 10 + number) for number in range(18)]
    content = [look({"url": data_uri(png(picture)), "detail": "high"})[1] for picture in noise]
    asked = [{"role": "user", "content": content}]
    leave_without_an_answer(server, {**endless, "messages": asked, "n": 4, "stream": False})


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def child_of(server: Server) -> int:
    """The process of the engine."""
    # With a limit of memory, there is another child, which watches it.
    children = children_of(server.process.pid)
    [child] = [pid for pid in children if b"engine.process.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return child


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="child processes are found by Linux's /proc")
def test_schemas_that_occupy_the_compiler(serve: Start) -> None:
    """Another client's answer does not wait for two of them, and they leave with their clients."""

    def body(limit: int) -> dict[str, Any]:
        schema = {"allOf": [{"type": "integer", "minimum": 1}, {"maximum": limit}]}  # of a kind that has to be tried
        return {"messages": HI, "response_format": {"type": "json_object", "value": schema}, "max_tokens": 2}

    server = serve("--parallel", "4")
    assert server.post(body(5)).status_code == 200
    engine = child_of(server)
    [trial] = children_of(engine)  # where schemas are tried
    os.kill(trial, signal.SIGSTOP)  # stands in for a schema without an end
    clients = [HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(2)]
    for number, client in enumerate(clients):
        client.request("POST", "/v1/chat/completions", json.dumps(body(10 + number)))
    wait_until(lambda: server.health()["running"] == 2)
    server.ask("hi", response_format={"type": "json_object"}, max_tokens=2)
    assert server.health()["running"] > 0
    for client in clients:
        client.close()
    wait_until(lambda: idle(server) and not children_of(engine))
    assert server.post(body(20)).status_code == 200


def test_the_queue_is_bounded(serve: Start, endless: dict[str, Any]) -> None:
    own = serve("--queue", "1", "--parallel", "1")
    with closing(Running(own, endless)):
        second = threading.Thread(target=lambda: own.post({"messages": HI, "max_tokens": 1}))
        second.start()
        wait_until(lambda: own.health()["waiting"] == 1)
        reply = own.post({"messages": HI})
        refused(reply, 429, code="queue_full")
        assert int(reply.headers["retry-after"]) >= 1
        assert own.health()["status"] == "ok"
    second.join(60)
    assert own.ask("hi", max_tokens=1)


def raw(server: Server, data: bytes, *, wait: float = 10) -> bytes:
    """What comes back for these bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as sock:
        sock.sendall(data)
        return received(sock)


def received(sock: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):  # where the server had not read the last byte when it closed
        while piece := sock.recv(65536):
            answer += piece
    return answer


def drip(sock: socket.socket, most: int) -> Iterator[None]:
    """Send a byte now and then until an answer comes; fail after `most` of them."""
    for _ in range(most):
        if select.select([sock], [], [], 0.1)[0]:
            return
        sock.sendall(b"x")
        yield
    raise AssertionError("bytes that come now and then have no limit of time")


def error_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == KEYS
    return int(head.split()[1]), error


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 400),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(20_000)), 400),
        (HEAD + b"Content-Length: -5\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 999999999999\r\n\r\n{}", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", 400),
        (HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        *[(HEAD + b"Content-Length: %s\r\n\r\n{}" % length, 400) for length in (b"+2", b"0x2", b"2 2", b"2, 3", b"")],
        (HEAD + b"Content-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}", 415),
        (HEAD + b"Content-Length: 100\r\n\r\n{", 408),  # never comes
    ],
    ids=lambda value: str(value)[:40],
)
def test_broken_http(server: Server, data: bytes, status: int) -> None:
    found, error = error_of(raw(server, data, wait=15))
    assert found == status
    assert (error["code"] == "invalid_http") == (status == 400)
    assert server.get("/health").status_code == 200


def test_slow_bodies_do_not_hold_others_up(server: Server) -> None:
    """One byte now and then is no way around the limit of time."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
        slow.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        for _ in drip(slow, 200):
            assert server.ask("hi", max_tokens=1)
        assert error_of(received(slow))[0] == 408


def test_a_client_that_does_not_read_holds_no_place(server: Server, endless: dict[str, Any]) -> None:
    """Its answer waits for it; the next request does not."""
    body = json.dumps({**endless, "n": 1, "max_tokens": 300, "logprobs": True, "top_logprobs": 20}).encode()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # else the kernel keeps megabytes for it
        lazy.connect(("127.0.0.1", server.port))
        lazy.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: server.health()["running"] == 1)
        assert server.ask("hi", max_tokens=1)
        assert lazy.recv(12) == b"HTTP/1.1 200"


def test_large_bodies_are_refused_while_they_are_read(serve: Start) -> None:
    """Also without a length, in chunks; the client can finish sending and read why."""
    own = serve("--max-body", "1")

    def pieces() -> Any:
        for _ in range(64):
            yield b" " * (1 << 16)

    url = f"{own.base}/chat/completions"
    refused(requests.post(url, data=pieces(), timeout=60), 413, code="body_too_large")
    refused(requests.post(url, data=b" " * (1 << 22), timeout=60), 413, code="body_too_large")
    assert own.ask("hi", max_tokens=1)


def test_slow_heads_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not keep a connection; what waits before its first byte ends, too."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT", 0.4)

    def answer(port: int, begun: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(begun)
            for _ in drip(sock, 100) if begun else ():
                pass
            return received(sock)

    async def check() -> None:
        config = uvicorn.Config(
            lambda: None, http=http_protocol.HTTPProtocol, ws="none", lifespan="off", log_config=None
        )
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: http_protocol.HTTPProtocol(config, state, {}), "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        for begun in (b"", b"GET /"):
            assert error_of(await asyncio.to_thread(answer, port, begun))[0] == 408
        listening.close()

    asyncio.run(check())


def test_metrics(server: Server, sample_uri: str) -> None:
    wait_until(lambda: idle(server))  # what earlier tests left
    before = metrics(server)
    answer = server.ask(look({"url": sample_uri}, "What number is printed?"))
    # A request is counted after its last byte has left.
    count = "pocketvlm_request_seconds_count"
    wait_until(lambda: idle(server) and metrics(server)[count] > before[count])
    after = metrics(server)

    def grown(name: str) -> float:
        return after[f"pocketvlm_{name}"] - before[f"pocketvlm_{name}"]

    usage = answer["usage"]
    assert grown("prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("completion_tokens_total") == usage["completion_tokens"]
    assert grown("cached_tokens_total") == usage["prompt_tokens_details"]["cached_tokens"]
    assert grown("image_tokens_total") == usage["prompt_tokens_details"]["image_tokens"]
    for name in ("time_to_first_token", "prefill", "decode", "queue", "request"):
        assert grown(f"{name}_seconds_count") == 1, name
    assert after["pocketvlm_requests_running"] == after["pocketvlm_requests_waiting"] == 0
    assert after["process_resident_memory_bytes"] > 1e7


def test_shutting_down_lets_the_running_end(serve: Start, endless: dict[str, Any]) -> None:
    own = serve()
    running = Running(own, {**endless, "n": 1, "max_tokens": 1000})
    own.process.send_signal(signal.SIGTERM)
    wait_until(lambda: own.get("/health").status_code == 503)
    reply = own.post({"messages": HI})
    refused(reply, 503, code="shutting_down")
    assert "retry-after" in reply.headers
    assert running.last() == b"data: [DONE]"
    assert own.process.wait(60) == 0
    with pytest.raises(requests.exceptions.ConnectionError):
        own.get("/health")


def test_shutting_down_ends_after_the_grace(serve: Start, endless: dict[str, Any]) -> None:
    own = serve("--grace", "0.3", "--parallel", "1")
    running = Running(own, endless)
    waiting: list[requests.Response] = []
    second = threading.Thread(target=lambda: waiting.append(own.post({"messages": HI})))
    second.start()
    wait_until(lambda: own.health()["waiting"] == 1)
    own.process.send_signal(signal.SIGTERM)
    assert json.loads(running.last().removeprefix(b"data: "))["error"]["code"] == "shutting_down"
    second.join(60)
    refused(waiting[0], 503, code="shutting_down")
    assert own.process.wait(60) == 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="child processes are found by Linux's /proc")
@pytest.mark.parametrize("how", slow_but([signal.SIGKILL, signal.SIGSTOP], signal.SIGKILL))
def test_the_engine_dies_under_load(serve: Start, endless: dict[str, Any], how: signal.Signals) -> None:
    """Every request gets the error, in the form that its answer has taken by then; the next one works."""
    own = serve("--parallel", "2", "--log-json", "--stuck-after", "3")
    streams = [Running(own, endless) for _ in range(2)]
    whole: list[requests.Response] = []
    waiting = threading.Thread(
        target=lambda: whole.append(own.post({**endless, "n": 1, "max_tokens": 20, "stream": False}))
    )
    waiting.start()
    wait_until(lambda: own.health()["waiting"] == 1)
    os.kill(child_of(own), how)
    for stream in streams:
        assert json.loads(stream.last().removeprefix(b"data: "))["error"]["code"] == "engine_crashed"
    assert own.ask("hi", max_tokens=1)["choices"]
    own_metrics = metrics(own)
    assert own_metrics["pocketvlm_engine_restarts_total"] == 1
    assert own_metrics["pocketvlm_engine_up"] == 1
    assert own_metrics["pocketvlm_engine_resident_memory_bytes"] > 1e6
    waiting.join(60)
    assert whole[0].status_code == 200  # it began after the crash, on the new engine
    assert stop(own) == 0
    assert any("did not answer for 3 s" in line for line in own.log) == (how == signal.SIGSTOP)


def answer_of_a_killed_engine(own: Server) -> requests.Response:
    """Ask for a stream of an engine that is killed before it answers."""
    engine = child_of(own)
    os.kill(engine, signal.SIGSTOP)  # it would answer too soon
    with ThreadPoolExecutor(1) as client:
        asking = client.submit(own.post, {"messages": HI, "stream": True})
        # Each call waits a second for the engine, which has the request by then; a stream begins after two.
        wait_until(lambda: own.health()["running"] == 1)
        os.kill(engine, signal.SIGKILL)
        reply: requests.Response = asking.result()
    return reply


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="child processes are found by Linux's /proc")
def test_the_engine_dies_before_the_first_token(serve: Start) -> None:
    """Then the answer still has a status of its own. On a busy machine the stream may have begun; then once more."""
    own = serve("--parallel", "1")
    reply = answer_of_a_killed_engine(own)
    for _ in range(4):
        if reply.status_code != 200:
            break
        assert '"code": "engine_crashed"' in reply.text
        assert own.ask("hi", max_tokens=1)["choices"]  # by the next engine
        reply = answer_of_a_killed_engine(own)
    refused(reply, 500, code="engine_crashed")
    assert reply.json()["error"]["type"] == "server_error"
    assert own.ask("hi", max_tokens=1)["choices"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="child processes are found by Linux's /proc")
@pytest.mark.slow
def test_a_crash_loop_shows_and_ends(serve: Start) -> None:
    own = serve()

    def kill() -> requests.Response:
        with suppress(AssertionError, ValueError, OSError):  # there is none just now
            os.kill(child_of(own), signal.SIGKILL)
        return own.get("/health")

    wait_until(lambda: kill().status_code == 503)
    reply = own.get("/health")
    if reply.status_code == 503:  # not started again just now
        refused(reply, 503, code="engine_crashed")
        assert "retry-after" in reply.headers
    wait_until(lambda: own.get("/health").status_code == 200 and own.health()["status"] == "ok")
    assert own.ask("hi", max_tokens=1)["choices"]


def test_streams_run_together(serve: Start, endless: dict[str, Any]) -> None:
    own = serve("--parallel", "3")
    streams = [Running(own, endless) for _ in range(3)]
    wait_until(lambda: own.health()["running"] == metrics(own)["pocketvlm_engine_running"] == 3)
    for stream in streams:
        stream.close()
    wait_until(lambda: idle(own))
    wait_until(lambda: metrics(own)["pocketvlm_engine_running"] == 0)


def test_many_clients_get_answers_about_their_own_pictures(serve: Start) -> None:
    own = serve("--parallel", "4")
    asked = []
    for colour in ("red", "green", "blue", "yellow", "purple", "orange", "black", "grey"):
        for draw in (ImageDraw.ImageDraw.ellipse, ImageDraw.ImageDraw.rectangle):
            picture = Image.new("RGB", (96, 96), "white")
            draw(ImageDraw.Draw(picture), (24, 24, 71, 71), fill=colour)
            asked.append(look({"url": data_uri(png(picture))}, "What is in the picture?"))
    alone = [own.ask(content)["choices"][0]["message"]["content"] for content in asked]
    assert len(set(alone)) >= 12  # the model tells most of them apart

    def client(number: int) -> list[str]:
        answers = []
        for round_ in range(10):
            if round_ % 2:
                answers.append(own.ask(asked[number])["choices"][0]["message"]["content"])
            else:
                chunks = own.stream(asked[number])
                answers.append("".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks))
        return answers

    with ThreadPoolExecutor(len(asked)) as clients:
        for number, answers in enumerate(clients.map(client, range(len(asked)))):
            assert answers == [alone[number]] * 10
