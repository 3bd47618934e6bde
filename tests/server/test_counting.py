"""POST /v1/chat/completions/input_tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from server.conftest import Server, Start, look, refused
from server.test_operations import HI, Running
from server.test_operations import endless as endless  # a fixture

ROUTE = "/chat/completions/input_tokens"


def count(server: Server, body: Any, prefix: str = "/v1", **options: Any) -> requests.Response:
    return requests.post(f"{server.url}{prefix}{ROUTE}", data=json.dumps(body), timeout=60, **options)


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_the_count_is_that_of_the_answer(server: Server, sample_uri: str, prefix: str) -> None:
    for content in ("hi", look({"url": sample_uri}), look({"url": sample_uri, "detail": "low"})):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        answer = server.post(body).json()
        reply = count(server, {**body, "stream": True}, prefix)
        assert reply.headers["content-type"] == "application/json"
        tokens = answer["usage"]["prompt_tokens"]
        assert reply.json() == {"object": "response.input_tokens", "input_tokens": tokens}


def test_errors_are_those_of_the_answer(server: Server) -> None:
    refused(count(server, {"messages": []}), 400, "messages")
    param = "messages.0.content.1.image_url.url"
    refused(count(server, {"messages": [{"role": "user", "content": look({"url": "data:,x"})}]}), 400, param)
    refused(requests.get(f"{server.base}{ROUTE}", timeout=60), 405)


def test_it_does_not_wait_for_answers(serve: Start, endless: dict[str, Any]) -> None:
    server = serve("--parallel", "1", "--queue", "0", "--strict-model")
    running = Running(server, endless)
    assert server.post({"messages": HI}).status_code == 429
    assert count(server, {"messages": HI}).json()["input_tokens"] > 0
    refused(count(server, {"messages": HI, "model": "other"}), 404, "model", "model_not_found")
    running.close()
