"""Real clients, from PyPI and npm, in the shapes of the snippets on Hugging Face's page for image-text-to-text.

Only the address is another one, and the picture a data: URI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
import requests
from huggingface_hub import InferenceClient
from pydantic import BaseModel, ConfigDict, Field

from server.conftest import JS, Server, look

QUESTION = "How many shapes are there?"


COLOUR: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "size": {"type": "integer", "minimum": 1, "maximum": 40}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}
PAINT: Any = {"type": "function", "function": {"name": "paint", "parameters": COLOUR}}


def asked(uri: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": look({"url": uri}, QUESTION)}]


# ---- curl


@pytest.mark.skipif(shutil.which("curl") is None, reason="NO curl ON THIS MACHINE: its two snippets are not tested")
@pytest.mark.parametrize("stream", [False, True])
def test_curl(server: Server, sample_uri: str, stream: bool, tmp_path: Path) -> None:
    body = json.dumps({"model": "iota", "messages": asked(sample_uri), "stream": stream})
    (tmp_path / "body.json").write_text(body)
    command = ["curl", "-sS", f"{server.base}/chat/completions", "-H", "Authorization: Bearer none"]
    command += ["-H", "Content-Type: application/json", "-d", f"@{tmp_path / 'body.json'}"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    if not stream:
        assert json.loads(out)["choices"][0]["message"]["content"] == "2"
        return
    events = [line.removeprefix("data: ") for line in out.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["delta"]["content"] for event in events) == "2"


# ---- openai


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base, api_key="none", max_retries=0)


def test_openai(client: openai.OpenAI, sample_uri: str) -> None:
    completion = client.chat.completions.create(model="iota", messages=asked(sample_uri))  # type: ignore[arg-type]
    message = completion.choices[0].message
    assert message.content == "2"
    assert completion.usage and completion.usage.total_tokens > 0
    # The message goes back as it is, whole and without what was not set.
    for said in (message, message.model_dump()):
        again = [*asked(sample_uri), said, {"role": "user", "content": QUESTION}]
        assert client.chat.completions.create(model="iota", messages=again).choices[0].message.content  # type: ignore


def test_openai_stream(client: openai.OpenAI, sample_uri: str) -> None:
    stream = client.chat.completions.create(model="iota", messages=asked(sample_uri), stream=True)  # type: ignore
    assert "".join(chunk.choices[0].delta.content for chunk in stream) == "2"  # type: ignore[misc]
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = client.chat.completions.create(model="iota", messages=asked(sample_uri), **options)
    assert last.usage.completion_tokens > 0
    assert last.choices == []


def test_openai_errors(client: openai.OpenAI) -> None:
    hi: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("other")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature: must be at most 2") as wrong:
        client.chat.completions.create(model="iota", messages=hi, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="max_token: unknown field; did you mean max_tokens"):
        client.chat.completions.create(model="iota", messages=hi, extra_body={"max_token": 5})
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="iota",
            messages=hi,
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}],
            stream=True,
        )
    assert tools.value.code == "unsupported"
    assert tools.value.param == "tools.0.function.parameters.not"
    assert [model.id for model in client.models.list()] == ["iota"]
    assert client.models.retrieve("iota").id == "iota"


class Colour(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "green"]
    size: Annotated[int, Field(ge=1, le=40)]


def test_openai_structured(client: openai.OpenAI, sample_uri: str) -> None:
    messages: Any = asked(sample_uri)
    whole = client.chat.completions.parse(model="iota", messages=messages, response_format=Colour, max_tokens=200)
    said = whole.choices[0].message
    assert isinstance(said.parsed, Colour)
    again: Any = [*messages, said, {"role": "user", "content": "Sure?"}]  # with `parsed`
    assert client.chat.completions.create(model="iota", messages=again, max_tokens=2).choices
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": COLOUR, "strict": True}}
    stream = client.chat.completions.create(
        model="iota", messages=messages, response_format=form, max_tokens=200, stream=True
    )
    jsonschema.validate(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in stream)), COLOUR)


def test_openai_tools(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    named: Any = {"type": "function", "function": {"name": "paint"}}
    fields: Any = {"model": "iota", "messages": messages, "tools": [PAINT], "tool_choice": named, "max_tokens": 200}
    answer = client.chat.completions.create(**fields).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    [call] = answer.message.tool_calls or []
    jsonschema.validate(json.loads(call.function.arguments), COLOUR)
    with client.chat.completions.stream(**fields) as stream:
        streamed = stream.get_final_completion().choices[0].message
    [again] = streamed.tool_calls or []
    assert again.id.startswith("call_")
    assert (again.function.name, again.function.arguments) == ("paint", call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    assert "parsed_arguments" in again.function.model_dump()
    messages = [*messages, streamed, result]
    assert client.chat.completions.create(model="iota", messages=messages, tools=[PAINT], max_tokens=5).choices


# ---- huggingface_hub


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offline mode that the tests run in forbids its client even loopback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
def test_huggingface_hub(server: Server, sample_uri: str) -> None:
    for base in (server.base, server.url):
        completion = InferenceClient(base_url=base, api_key="none").chat.completions.create(messages=asked(sample_uri))
        assert completion.choices[0].message.content == "2"


@pytest.mark.usefixtures("online")
def test_huggingface_hub_stream(server: Server, sample_uri: str) -> None:
    client = InferenceClient(base_url=server.base, api_key="none")
    stream = client.chat.completions.create(model="iota", messages=asked(sample_uri), stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in stream) == "2"  # type: ignore[misc]


@pytest.mark.usefixtures("online")
def test_huggingface_hub_rewrites_a_schema(server: Server) -> None:
    """To a form of its own; that is held to as well."""
    client = InferenceClient(base_url=server.base, api_key="none")
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": COLOUR}}
    hi = [{"role": "user", "content": "hi"}]
    whole = client.chat.completions.create(messages=hi, response_format=form, max_tokens=200)
    jsonschema.validate(json.loads(whole.choices[0].message.content), COLOUR)


@pytest.mark.usefixtures("online")
def test_huggingface_hub_tools(server: Server) -> None:
    client = InferenceClient(base_url=server.base, api_key="none")
    hi = [{"role": "user", "content": "hi"}]
    whole = client.chat.completions.create(messages=hi, tools=[PAINT], tool_choice="required", max_tokens=900)
    call = whole.choices[0].message.tool_calls[0]
    assert call.function.name == "paint"
    jsonschema.validate(json.loads(call.function.arguments), COLOUR)


# ---- requests


def test_requests(server: Server, sample_uri: str) -> None:
    headers = {"Authorization": "Bearer none"}
    payload: dict[str, Any] = {"messages": asked(sample_uri), "model": "iota"}
    url = f"{server.base}/chat/completions"
    response = requests.post(url, headers=headers, json=payload, timeout=60).json()
    assert response["choices"][0]["message"]["content"] == "2"
    text = ""
    with requests.post(url, headers=headers, json={**payload, "stream": True}, stream=True, timeout=60) as reply:
        for line in reply.iter_lines():
            if line.strip() == b"data: [DONE]":
                break
            if line.startswith(b"data:"):
                chunk = json.loads(line.decode().lstrip("data:").rstrip("/n"))  # noqa: B005  # as the page has it
                text += chunk["choices"][0]["delta"]["content"]
    assert text == "2"


# ---- npm


@pytest.mark.parametrize(
    ("client", "stream"),
    [("openai", False), ("openai", True), ("huggingface", False), ("huggingface", True), ("fetch", False)],
)
def test_npm_clients(npm: Path, server: Server, sample_uri: str, client: str, stream: bool) -> None:
    assert npm.is_dir()
    command = ["node", "clients.mjs", client, server.base, sample_uri, *(["stream"] if stream else [])]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    text, last = done.stdout.splitlines()
    assert text == "2"
    assert json.loads(last)["choices"][0]["finish_reason"] == "stop"


# ---- Hugging Face's schemas


@pytest.fixture(scope="session")
def huggingface(npm: Path) -> Callable[[str], jsonschema.Draft7Validator]:
    """Validators by name: output, stream_output."""

    def nullable(schema: Any) -> Any:
        """OpenAPI's "nullable", which JSON Schema does not know, in its own words."""
        if isinstance(schema, list):
            return [nullable(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        plain = {key: nullable(value) for key, value in schema.items() if key != "nullable"}
        return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain

    def validator(name: str) -> jsonschema.Draft7Validator:
        [path] = npm.glob(f"@huggingface/tasks/**/chat-completion/spec/{name}.json")
        return jsonschema.Draft7Validator(nullable(json.loads(path.read_text("utf-8"))))

    return validator


FORMS: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"n": 2},
    {"max_tokens": 1},
    {"response_format": {"type": "json_object", "value": COLOUR}},
    {"tools": [PAINT], "tool_choice": {"function": {"name": "paint"}}},
]


@pytest.mark.parametrize("fields", FORMS)
def test_answers_fit_huggingfaces_schemas(
    server: Server, sample_uri: str, huggingface: Callable[[str], jsonschema.Draft7Validator], fields: dict[str, Any]
) -> None:
    huggingface("output").validate(server.ask(look({"url": sample_uri}), **fields))
    stream = huggingface("stream_output")
    for options in (None, {"include_usage": True}):
        for chunk in server.stream(look({"url": sample_uri}), stream_options=options, **fields):
            for choice in chunk["choices"]:  # the schema wants these in each, which openai's helper would add up
                choice["delta"].setdefault("role", "assistant")
                for call in choice["delta"].get("tool_calls", ()):
                    call.update({"id": "", "type": "function", **call})
            stream.validate(chunk)
    with pytest.raises(jsonschema.ValidationError):  # or the validator checks nothing
        stream.validate({**chunk, "choices": [{"index": 0, "delta": {}}]})
