"""The same conversations through every API of the server, and the same safety. adapters.py has the APIs."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import requests

from server.adapters import ADAPTERS, Adapter, Ask, Call, ChatCompletions, Picture, Said, Tool, Turn, assistant, user
from server.conftest import Server, start, stop

COUNT, TWO = "How many shapes are there?", "2"
DESCRIBE = "What is in the picture?"
COLOUR, RED = "What colour is the circle?", "Red"
PAINT = Tool(
    "paint",
    {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "green", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
)
SHAPE = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "number": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "number"],
    "additionalProperties": False,
}
CALL = Call("paint", {"colour": "red"})
HI = Ask([user("hi")], max_tokens=1)
CHAT = ChatCompletions()


def name_of(value: Any) -> str | None:
    return value.name if isinstance(value, Adapter) else None


every_api = pytest.mark.parametrize("api", ADAPTERS, ids=name_of)


def post(server: Server, api: Adapter, body: Any, **options: Any) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(server.url + api.path, data=data, timeout=60, **options)


def say(server: Server, api: Adapter, ask: Ask) -> Said:
    """Return the answer to `ask`, which must be the same as a stream, and to the same prompt as in chat completions."""
    reply = post(server, api, api.write(ask))
    assert reply.status_code == 200, reply.text
    said = api.read(reply.json())
    stream = post(server, api, api.write(ask.streamed()))
    assert (stream.status_code, stream.headers["content-type"]) == (200, api.type)
    streamed = api.read_stream(stream.content.decode())
    assert [call.arguments for call in streamed.calls] == [call.arguments for call in said.calls]
    assert (streamed.thought, streamed.reason) == (said.thought, said.reason)
    assert said.calls or streamed.text == said.text  # a whole answer may leave out the text next to calls
    assert (streamed.prompt_tokens, streamed.answer_tokens) == (said.prompt_tokens, said.answer_tokens)
    if not isinstance(api, ChatCompletions):
        asked = post(server, CHAT, CHAT.write(ask)).json()
        assert said.prompt_tokens == CHAT.read(asked).prompt_tokens
    return said


def refused(reply: requests.Response, api: Adapter, status: int) -> str:
    """Return the message of an answer that must be this error, in the API's own form."""
    assert reply.status_code == status, f"{reply.status_code}: {reply.text[:300]}"
    assert reply.headers["content-type"] == "application/json"
    message = api.error(reply.json())
    assert message
    return message


# ---- kinds of conversations


@every_api
def test_a_picture_and_a_second_turn(server: Server, sample_uri: str, api: Adapter) -> None:
    first = user(COUNT, Picture(sample_uri))
    assert say(server, api, Ask([first])).text == TWO
    said = say(server, api, Ask([first, assistant(TWO), user(COLOUR)]))
    assert (said.text, said.reason) == (RED, "stop")


@every_api
def test_a_picture_in_the_result_of_a_tool(server: Server, sample_uri: str, api: Adapter) -> None:
    result = Turn("tool", ["Here it is.", Picture(sample_uri)], result_of=CALL)
    turns = [user("Paint."), assistant(calls=[CALL]), result, assistant("Done."), user(COUNT)]
    assert say(server, api, Ask(turns)).text == TWO


@every_api
def test_a_begun_answer_goes_on(server: Server, sample_uri: str, api: Adapter) -> None:
    said = say(server, api, Ask([user(Picture(sample_uri), DESCRIBE), assistant("A large red")], max_tokens=4))
    assert said.text.startswith(" circle")


@every_api
def test_an_earlier_thought(server: Server, sample_uri: str, api: Adapter) -> None:
    """iota's template has no place for it; test_responses.py and its siblings look at the request itself."""
    first = user(COUNT, Picture(sample_uri))
    turns = [first, assistant(TWO, thought="A circle and a star."), user(COLOUR)]
    assert say(server, api, Ask(turns)).text == RED


@every_api
def test_texts_of_the_system_anywhere(server: Server, sample_uri: str, api: Adapter) -> None:
    picture = Picture(sample_uri)
    for turns in (
        [Turn("system", ["Be short."]), user(COUNT, picture)],
        [user("Hello"), assistant("Hi."), Turn("system", ["Be short."]), user(COUNT, picture)],
        [user("Look."), user(COUNT, picture)],
        [assistant("Hello."), user(COUNT, picture)],
    ):
        assert say(server, api, Ask(turns, max_tokens=8)).text


@every_api
def test_a_schema(server: Server, sample_uri: str, api: Adapter) -> None:
    said = say(server, api, Ask([user(COUNT, Picture(sample_uri))], schema=SHAPE, max_tokens=60))
    jsonschema.validate(json.loads(said.text), SHAPE)


@every_api
def test_a_tool_and_its_result(server: Server, sample_uri: str, api: Adapter) -> None:
    first = user(COUNT, Picture(sample_uri))
    call = CALL
    if api.demands_calls:
        said = say(server, api, Ask([first], tools=[PAINT], must_call=True, max_tokens=150))
        [call] = said.calls
        assert (call.name, said.reason) == ("paint", "calls")
        jsonschema.validate(call.arguments, PAINT.parameters)
    turns = [first, assistant(calls=[call]), Turn("tool", ["painted"], result_of=call)]
    assert say(server, api, Ask(turns, tools=[PAINT], max_tokens=3)).answer_tokens


@every_api
def test_an_answer_that_is_cut(server: Server, sample_uri: str, api: Adapter) -> None:
    said = say(server, api, Ask([user(Picture(sample_uri), DESCRIBE)], max_tokens=2))
    assert (said.reason, said.answer_tokens) == ("length", 2)


ODDITIES = [(api, odd) for api in ADAPTERS for odd in api.oddities()]


@pytest.mark.parametrize(("api", "odd"), ODDITIES, ids=[f"{api.name}, {odd}" for api, odd in ODDITIES])
def test_what_is_odd_is_answered(server: Server, api: Adapter, odd: str) -> None:
    body = {**api.write(HI), **api.oddities()[odd]}
    reply = post(server, api, body)
    assert reply.status_code == 200, reply.text


# ---- what is refused, and how


@every_api
@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,!!!",
        "data:image/png;base64,aGVsbG8=",
        "data:text/plain,hello",
        "file:///etc/hostname",
        "file://localhost/etc/hostname",
        "FILE:/etc/hostname",
        "/etc/hostname",
        "http://127.0.0.1:{port}/",
        "http://[::1]:{port}/",
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/a.png",
        "ftp://127.0.0.1:{port}/",
        "gopher://127.0.0.1:{port}/",
        "sha256:" + 64 * "0",
    ],
)
def test_pictures_that_are_not_read(server: Server, api: Adapter, url: str) -> None:
    """Each is refused by the path in the client's own body, and nothing is fetched."""
    with socket.create_server(("127.0.0.1", 0)) as watched:
        address = url.format(port=watched.getsockname()[1])
        reply = post(server, api, api.write(Ask([user("Look."), user(COUNT, Picture(address))], max_tokens=1)))
        message = refused(reply, api, 404 if url.startswith("sha256") else 400)
        assert message.startswith(f"{api.place(1, 1)}: ")
        watched.settimeout(0.05)
        with pytest.raises(TimeoutError):
            watched.accept()


@every_api
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"hi"',
        b"\xff\xfe",
        b'{"model": ' + b"[" * 100_000,
        b'{"model": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        b'{"max_tokens": ' + b"9" * 10_000 + b"}",
        b"{" + b'"a": 1, ' * 200_000 + b'"a": [' + b"1, " * 200_000 + b"1]}",
    ],
    ids=["empty", "cut", "list", "null", "text", "not UTF-8", "deep list", "deep object", "long number", "many values"],
)
def test_bodies_that_are_not_objects(server: Server, api: Adapter, body: bytes) -> None:
    refused(post(server, api, body), api, 400)


@every_api
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e400, "\ud83d", {"a": {"b": [1]}}, [[[]]], True])
def test_wrong_values_at_every_field(server: Server, api: Adapter, value: Any) -> None:
    """None is a crash, and the next request works."""
    good = api.write(Ask([user("hi")], max_tokens=1, schema=SHAPE, tools=[PAINT], must_call=False))
    for name in good:
        if name in ("stream", "model") or (name in api.open_fields and isinstance(value, dict)):
            continue
        reply = post(server, api, {**good, name: value})
        if value is True and name in ("store",):
            continue
        refused(reply, api, 400)
    assert post(server, api, api.write(HI)).status_code == 200


@every_api
def test_half_a_surrogate_in_a_text(server: Server, api: Adapter) -> None:
    body = json.dumps(api.write(HI)).replace('"hi"', '"\\ud83d"').encode()
    assert b"\\ud83d" in body
    assert "surrogate" in refused(post(server, api, body), api, 400)


@every_api
def test_a_prompt_that_is_too_long(server: Server, api: Adapter) -> None:
    assert "context" in refused(post(server, api, api.write(Ask([user("a b " * 40_000)]))), api, 400)


@every_api
def test_compressed_bodies(server: Server, api: Adapter) -> None:
    refused(post(server, api, api.write(HI), headers={"content-encoding": "gzip"}), api, 415)


@every_api
def test_other_hosts_and_pages_stay_out(server: Server, api: Adapter) -> None:
    body = api.write(HI)
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        reply = post(server, api, body, headers=headers)
        refused(reply, api, 403)
        assert "access-control-allow-origin" not in reply.headers
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    refused(requests.options(server.url + api.path, headers=preflight, timeout=60), api, 403)


@every_api
def test_another_method(server: Server, api: Adapter) -> None:
    refused(requests.put(server.url + api.path, data=b"{}", timeout=60), api, 405)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with a key, one place and no queue, that refuses other models."""
    options = ("--queue", "0", "--parallel", "1", "--max-body", "1", "--strict-model")
    running = start(*options, "--allow-origin", "https://page.example", env={"POCKETVLM_API_KEY": "s3cret"})
    yield running
    assert stop(running) == 0


KEY = {"authorization": "Bearer s3cret"}


@every_api
def test_the_key(guarded: Server, api: Adapter) -> None:
    body = api.write(HI)
    for wrong in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"authorization": "Basic s3cret"}):
        assert "s3cret" not in refused(post(guarded, api, body, headers=wrong), api, 401)
    for right in (KEY, {"authorization": "bearer s3cret"}, {"x-api-key": "s3cret"}):
        assert post(guarded, api, body, headers=right).status_code == 200


@every_api
def test_a_page_that_is_allowed(guarded: Server, api: Adapter) -> None:
    origin = {"origin": "https://page.example"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    reply = requests.options(guarded.url + api.path, headers=preflight, timeout=60)
    assert (reply.status_code, reply.headers["access-control-allow-headers"]) == (204, "x-api-key")
    for headers, status in (({**origin, **KEY}, 200), (origin, 401)):
        reply = post(guarded, api, api.write(HI), headers=headers)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, origin["origin"])


@every_api
def test_another_model(guarded: Server, api: Adapter) -> None:
    body = api.write(Ask([user("hi")], max_tokens=1, model="another"))
    assert "iota" in refused(post(guarded, api, body, headers=KEY), api, 404)


@every_api
def test_a_body_over_the_limit(guarded: Server, api: Adapter) -> None:
    refused(post(guarded, api, api.write(Ask([user("a" * (1 << 20))])), headers=KEY), api, 413)


@every_api
def test_a_full_queue(guarded: Server, api: Adapter) -> None:
    """While one request runs, another is refused at once, also as a stream."""
    endless = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "stream": True}
    with post(guarded, CHAT, endless, headers=KEY, stream=True) as running:
        pieces = running.iter_content(1)  # kept: the end of the iterator closes the connection
        next(pieces)
        for ask in (HI, HI.streamed()):
            reply = post(guarded, api, api.write(ask), headers=KEY)
            refused(reply, api, 429)
            assert int(reply.headers["retry-after"]) >= 1
    idle = threading.Event()
    while not idle.wait(0.02) and guarded.health()["running"]:
        pass


def test_the_apis_have_names() -> None:
    assert len({api.name for api in ADAPTERS}) == len(ADAPTERS)
