"""A wrong value at every place of a request: each is a 4xx with all four keys, and the good request after it works.

`make fuzz ARGS=requests` sends random ones.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from fuzz.documents import WRONG, paths, replaced
from fuzz.kinds.requests import GOOD
from server.conftest import KEYS, Server


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def send(session: requests.Session, server: Server, data: bytes) -> tuple[int, dict[str, Any]]:
    reply = session.post(f"{server.base}/chat/completions", data=data, timeout=60)
    assert 400 <= reply.status_code < 500, f"{reply.status_code} for {data[:300]!r}: {reply.text[:300]}"
    error = reply.json()["error"]
    assert set(error) == KEYS
    assert error["message"]
    return reply.status_code, error


def still_works(session: requests.Session, server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    reply = session.post(f"{server.base}/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text


def test_wrong_types_at_every_path(session: requests.Session, server: Server) -> None:
    """The field that is named is the one that was changed, or one inside or around it.

    GOOD itself is refused for a keyword in its tools, after all of these checks; what is refused there passed them.
    """
    sent = 0
    for path in paths(GOOD):
        refusals = 0
        for wrong in WRONG:
            _, error = send(session, server, json.dumps(replaced(GOOD, path, wrong)).encode())
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
