"""Regions over HTTP: an extension of the message, which real clients ignore and send back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import requests
from huggingface_hub import InferenceClient

from integration.test_regions import LIST, forced, with_notation
from server.conftest import Server, look, start, stop

SIZE = (640, 480)
BOX = {"x": 64.0, "y": 96.0, "width": 128.0, "height": 192.0}


@pytest.fixture(scope="module")
def placed(iota_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundle = with_notation(iota_bundle, tmp_path_factory.mktemp("served") / "iota", "qwen3-vl")
    running = start("--model", str(bundle), "--parallel", "1")
    yield running
    assert stop(running) == 0


def test_the_message_has_them(placed: Server, sample_uri: str) -> None:
    content = look({"url": sample_uri}, "Where?")
    answer = placed.ask(content, response_format=forced(LIST))
    message = answer["choices"][0]["message"]
    assert [region["label"] for region in message["regions"]] == ["red circle", "all"]
    first = message["regions"][0]
    assert (first["box"], first["image"], {*first}) == (BOX, 0, {"label", "image", "box", "relative", "span"})
    assert json.loads(message["content"][slice(*first["span"])]) == LIST[0]
    assert "regions" not in placed.ask(content, max_tokens=3)["choices"][0]["message"]
    schemas = requests.get(f"{placed.url}/openapi.json", timeout=60).json()["components"]["schemas"]
    jsonschema.validate(answer, {"$ref": "#/components/schemas/ChatCompletion", "components": {"schemas": schemas}})
    assert "regions" in schemas["ResponseMessage"]["properties"] and "regions" in schemas["Delta"]["properties"]


def test_a_stream_has_them_with_its_last_chunk(placed: Server, sample_uri: str) -> None:
    chunks = placed.stream(look({"url": sample_uri}, "Where?"), response_format=forced(LIST))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert ["regions" in delta for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1]["regions"][0]["box"] == BOX and deltas[-1]["content"] == ""
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_real_clients_ignore_them(placed: Server, sample_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which forbids its client even loopback
    messages: list[Any] = [{"role": "user", "content": look({"url": sample_uri}, "Where?")}]
    client = openai.OpenAI(base_url=placed.base, api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "iota", "response_format": forced(LIST)}
    whole = client.chat.completions.create(messages=messages, **asked)
    assert json.loads(whole.choices[0].message.content or "") == LIST
    with client.chat.completions.stream(messages=messages, model="iota", extra_body={"n": 2}) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content
    again = [*messages, whole.choices[0].message, {"role": "user", "content": "And?"}]
    assert client.chat.completions.create(messages=again, **asked).choices[0].finish_reason == "stop"
    chunks = [*client.chat.completions.create(messages=messages, stream=True, **asked)]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert json.loads(text) == LIST
    other = InferenceClient(base_url=placed.url, token="none")
    done = other.chat_completion(messages, response_format=forced(LIST))  # type: ignore[arg-type]
    assert json.loads(done.choices[0].message.content or "") == LIST
