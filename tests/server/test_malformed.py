"""Malformed requests by the hundred: each is a 4xx with all four keys, and the good request after it works.

`--malformed 1000` sends that many of each kind.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from server.conftest import KEYS, Server

GOOD: dict[str, Any] = {
    "model": "iota",
    "messages": [
        {"role": "system", "content": "be brief", "name": "boss"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi"},
                {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low", "max_image_tokens": 64}},
                {"type": "image", "base64": "aGk=", "detail": "auto"},
            ],
        },
        {
            "role": "assistant",
            "content": "yes",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "ok", "tool_call_id": "1"},
        {"role": "user", "content": "hi"},
    ],
    "max_tokens": 1,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "seed": 1,
    "stop": ["a"],
    "n": 1,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "repeat_penalty": 1.1,
    "ignore_eos": False,
    "logit_bias": {"1": 1},
    "logprobs": True,
    "top_logprobs": 1,
    "stream": False,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "tools": [
        {"type": "function", "function": {"name": "f", "description": "d", "strict": True, "parameters": {"not": {}}}}
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "tool_prompt": "p",
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "user": "u",
    "metadata": {"k": "v"},
}
# Of every JSON type, so that some are wrong wherever they stand.
WRONG: tuple[Any, ...] = (True, -1, 0.5, 1e308, float("nan"), "\ud800", [], [[]], {}, {"": None}, [None], 10**30)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(item, (*path, key))


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(GOOD)
    at: Any = body
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return body


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def send(session: requests.Session, server: Server, data: bytes) -> tuple[int, dict[str, Any]]:
    reply = session.post(f"{server.base}/chat/completions", data=data, timeout=30)
    assert 400 <= reply.status_code < 500, f"{reply.status_code} for {data[:300]!r}: {reply.text[:300]}"
    error = reply.json()["error"]
    assert set(error) == KEYS
    assert error["message"]
    return reply.status_code, error


def still_works(session: requests.Session, server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    reply = session.post(f"{server.base}/chat/completions", json=body, timeout=30)
    assert reply.status_code == 200, reply.text


def test_wrong_types_at_every_path(session: requests.Session, server: Server) -> None:
    """The field that is named is the one that was changed, or one inside or around it.

    GOOD itself is refused for a keyword in its tools, after all of these checks; what is refused there passed them.
    """
    sent = 0
    for path in paths(GOOD):
        refusals = 0
        for wrong in WRONG:
            _, error = send(session, server, json.dumps(changed(path, wrong)).encode())
            sent += 1
            if error["code"] == "unsupported" and error["param"] == "tools.0.function.parameters.not":
                continue
            refusals += 1
            named = (error["param"] or "").split(".")
            where = [str(step) for step in path]
            common = min(len(named), len(where))
            near = named[:common] == where[:common] or where[0] in ("tools", "logprobs")
            assert near, f"{error} for {wrong!r} at {'.'.join(where)}"
        free = "schema" in path or "parameters" in path
        assert refusals >= 5 or free, f"almost anything goes at {path}"
    assert sent > 500
    still_works(session, server)


def test_missing_and_unknown_fields(session: requests.Session, server: Server) -> None:
    for path in paths(GOOD):
        body: Any = copy.deepcopy(GOOD)
        at = body
        for step in path[:-1]:
            at = at[step]
        if isinstance(at, dict):
            at["nonsense"] = 1
            send(session, server, json.dumps(body).encode())
            del at["nonsense"], at[path[-1]]
            send(session, server, json.dumps(body).encode())
    still_works(session, server)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "tool", "robot"]) | JSON},
        optional={"content": JSON, "name": JSON, "tool_calls": JSON},
    ),
    max_size=3,
)
BODIES = (
    JSON
    | st.dictionaries(st.sampled_from(sorted(GOOD)), JSON, max_size=6)
    | st.builds(lambda path, value: changed(path, value), st.sampled_from(list(paths(GOOD))), JSON)
    | st.builds(lambda messages: {"messages": messages, "unknown": 1}, MESSAGES)
)


@pytest.mark.slow
def test_random_bodies(session: requests.Session, server: Server, request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--malformed")

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(BODIES)
    def check(body: Any) -> None:
        send(session, server, json.dumps(body).encode())

    check()
    still_works(session, server)


@pytest.mark.slow
def test_random_bytes(session: requests.Session, server: Server, request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--malformed")
    whole = json.dumps(GOOD).encode()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(max_size=200) | st.integers(0, len(whole) - 1).map(lambda end: whole[:end]))
    def check(data: bytes) -> None:
        send(session, server, data)

    check()
    still_works(session, server)
