"""Ollama's API: answers and streams in its words, what it says of the models, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

from pocketvlm.messages import ChatCompletionChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta
from pocketvlm.messages.field_errors import validated
from pocketvlm.messages.response import FinishReason, PromptTokensDetails, Timings, Usage
from pocketvlm.server import openapi
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.protocols.exchange import Chunks
from pocketvlm.server.protocols.ollama.answer import Chat, Generate
from pocketvlm.server.protocols.ollama.request import ChatBody, GenerateBody
from server.conftest import Server, Start

QUESTION = "How many shapes are there?"
HI = [{"role": "user", "content": "hi"}]
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="session")
def sample(sample_uri: str) -> str:
    return sample_uri.partition(",")[2]


def post(server: Server, path: str, **body: Any) -> requests.Response:
    return requests.post(server.url + path, data=json.dumps(body), timeout=60)


def ask(server: Server, path: str, **body: Any) -> dict[str, Any]:
    reply = post(server, path, model="iota", stream=False, **body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    answer: dict[str, Any] = reply.json()
    return answer


def lines(server: Server, path: str, **body: Any) -> list[dict[str, Any]]:
    """The answer as a stream, which is the default."""
    reply = post(server, path, model="iota", **body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.content.endswith(b"\n")
    return [json.loads(line) for line in reply.content.splitlines()]


def refused(reply: requests.Response, status: int, start: str = "") -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json()) == ["error"]
    assert reply.json()["error"].startswith(start), reply.text


# ---- answers


def test_chat(server: Server, sample: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION, "images": [sample]}]
    answer = ask(server, "/api/chat", messages=messages)
    assert (answer["model"], answer["done"], answer["done_reason"]) == ("iota", True, "stop")
    assert answer["message"] == {"role": "assistant", "content": "2"}
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(answer["created_at"])).total_seconds() < 60
    assert answer["prompt_eval_count"] > 50
    assert answer["eval_count"] == 2
    assert all(isinstance(answer[name], int) for name in DURATIONS)
    assert answer["total_duration"] >= answer["prompt_eval_duration"] + answer["eval_duration"]
    messages += [answer["message"], {"role": "user", "content": "What colour is the circle?"}]
    assert ask(server, "/api/chat", messages=messages)["message"]["content"] == "Red"


def test_chat_stream(server: Server, sample: str) -> None:
    *parts, end = lines(server, "/api/chat", messages=[{"role": "user", "content": QUESTION, "images": [sample]}])
    assert "".join(part["message"]["content"] for part in parts) == "2"
    assert all(part["message"]["role"] == "assistant" and part["done"] is False for part in parts)
    assert not any("done_reason" in part for part in parts)
    assert (end["message"]["content"], end["done"], end["done_reason"], end["eval_count"]) == ("", True, "stop", 2)


def test_generate(server: Server, sample: str) -> None:
    answer = ask(server, "/api/generate", prompt=QUESTION, images=[sample], context=[1, 2], options={"num_ctx": 1})
    assert (answer["response"], answer["done_reason"]) == ("2", "stop")
    assert "message" not in answer
    *parts, end = lines(server, "/api/generate", prompt=QUESTION, images=[sample], suffix="", system=None)
    assert "".join(part["response"] for part in parts) == "2"
    assert end["done_reason"] == "stop"
    asked = ask(server, "/api/generate", prompt="hi", system="Be brief.", options={"num_predict": 1})
    assert asked["done_reason"] == "length"
    assert asked["prompt_eval_count"] > ask(server, "/api/generate", prompt="hi")["prompt_eval_count"]


def test_a_mark_places_a_picture(server: Server, sample: str) -> None:
    answer = ask(server, "/api/chat", messages=[{"role": "user", "content": f"[img]{QUESTION}", "images": [sample]}])
    assert answer["message"]["content"] == "2"


def test_raw(server: Server, sample: str) -> None:
    """The prompt that the template makes, sent raw, is the same prompt."""
    form = "<|im_start|>User: {}<end_of_utterance>\nAssistant:"
    whole = ask(server, "/api/generate", prompt="What is it?", options={"num_predict": 4})
    raw = ask(server, "/api/generate", prompt=form.format("What is it?"), raw=True, options={"num_predict": 4})
    assert raw["prompt_eval_count"] == whole["prompt_eval_count"]
    assert raw["response"].lstrip() == whole["response"]
    escaped = ask(server, "/api/generate", prompt=form.format("What is it?"), options={"num_predict": 1})
    assert escaped["prompt_eval_count"] > whole["prompt_eval_count"] + 5
    seen = ask(
        server,
        "/api/generate",
        prompt=f"<|im_start|>User:[img]{QUESTION}<end_of_utterance>\nAssistant:",
        raw=True,
        images=[sample],
    )
    assert seen["response"].strip() == "2"


def test_formats(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "size": {"type": "integer", "minimum": 1, "maximum": 40}},
        "required": ["colour", "size"],
        "additionalProperties": False,
    }
    for path, asked in (("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "hi"})):
        answer = ask(server, path, format=schema, **asked)
        jsonschema.validate(
            json.loads(answer["message"]["content"] if "message" in answer else answer["response"]), schema
        )
    assert ask(server, "/api/generate", prompt="hi", format="json", options={"num_predict": 3})["response"][0] == "{"
    assert ask(server, "/api/generate", prompt="hi", format="", options={"num_predict": 1})["response"] != "{"
    left_out = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a(?=b)", "maxLength": 4}}}
    answer = ask(server, "/api/chat", messages=HI, format=left_out, options={"num_predict": 9})
    assert answer["not_enforced"] == ["format.properties.a.pattern"]


def test_options(server: Server) -> None:
    whole = ask(server, "/api/chat", messages=HI, options={"num_predict": 12})["message"]["content"]
    stops = [*(f"never {number}" for number in range(9)), whole[4:7]]
    cut = ask(server, "/api/chat", messages=HI, options={"num_predict": 12, "stop": stops})
    assert (cut["message"]["content"], cut["done_reason"]) == (whole[:4], "stop")
    hot = {"num_predict": 8, "temperature": 2, "seed": 1}
    assert ask(server, "/api/chat", messages=HI, options=hot)["message"]["content"] != whole[:8]


def test_logprobs(server: Server) -> None:
    answer = ask(server, "/api/chat", messages=HI, logprobs=True, top_logprobs=2, options={"num_predict": 3})
    assert len(answer["logprobs"]) == 3
    for entry in answer["logprobs"]:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
        assert bytes(entry["bytes"]).decode() == entry["token"]
    parts = lines(server, "/api/chat", messages=HI, logprobs=True, options={"num_predict": 3})
    assert sum(len(part.get("logprobs", ())) for part in parts) == 3


def test_a_conversation_with_tools(server: Server) -> None:
    """As Home Assistant sends it: objects as arguments, no ids, no names of results."""
    tool = {"type": "function", "function": {"name": "turn_on", "parameters": {"type": "object", "properties": {}}}}
    call = {"function": {"name": "turn_on", "arguments": {"name": "lamp"}}}
    messages = [
        {"role": "system", "content": "You are a voice assistant."},
        *HI,
        {"role": "assistant", "content": None, "thinking": "Hm.", "tool_calls": [call, call]},
        {"role": "tool", "content": '{"success": true}'},
        {"role": "tool", "content": '{"success": true}', "tool_name": "turn_on"},
    ]
    answer = ask(server, "/api/chat", messages=messages, tools=[tool], think=False, options={"num_predict": 4})
    assert answer["message"]["role"] == "assistant"


def test_load_and_unload(serve: Start) -> None:
    server = serve("--idle-unload", "100")

    def loaded() -> list[Any]:
        models: list[Any] = server.get("/api/ps").json()["models"]
        return models

    def unloaded() -> bool:
        return any(not loaded() for _ in range(100))

    answer = ask(server, "/api/generate", prompt="")
    assert (answer["response"], answer["done"], answer["done_reason"]) == ("", True, "load")
    [model] = loaded()
    left = datetime.fromisoformat(model["expires_at"]) - datetime.now(timezone.utc)
    assert 60 < left.total_seconds() <= 100
    assert model["size"] > 5_000_000 and model["size_vram"] == 0
    assert model["context_length"] == 2048
    ask(server, "/api/chat", messages=HI, keep_alive="-1", options={"num_predict": 1})
    assert datetime.fromisoformat(loaded()[0]["expires_at"]).year > 2200
    reply = post(server, "/api/chat", model="iota", keep_alive=0)  # a stream is the default, but this is none
    assert reply.headers["content-type"] == "application/json"
    assert (reply.json()["message"]["content"], reply.json()["done_reason"]) == ("", "unload")
    assert unloaded()
    parts = lines(server, "/api/generate", prompt="hi", keep_alive="0s", options={"num_predict": 1})
    assert parts[0].get("status", "loading iota") == "loading iota"  # where loading takes seconds
    assert parts[-1]["load_duration"] > 0
    assert unloaded()


def test_a_model_that_stays_for_ages(serve: Start) -> None:
    server = serve("--idle-unload", "1e15")
    [model] = server.get("/api/ps").json()["models"]
    assert datetime.fromisoformat(model["expires_at"]).year > 2200


# ---- pieces of an answer


def chunks(*deltas: Delta, reason: FinishReason = "stop", not_enforced: list[str] | None = None) -> Chunks:
    head: Any = {"id": "c", "created": 0, "model": "iota"}
    for delta in deltas:
        yield ChatCompletionChunk(**head, choices=[ChunkChoice(index=0, delta=delta)])
    last = ChunkChoice(index=0, delta=Delta(), finish_reason=reason)
    yield ChatCompletionChunk(**head, choices=[last], not_enforced=not_enforced)
    details = PromptTokensDetails()
    usage = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5, prompt_tokens_details=details)
    yield ChatCompletionChunk(**head, choices=[], usage=usage, timings=Timings(load_ms=1.5))


def calls(*arguments: str) -> Iterator[Delta]:
    for index, text in enumerate(arguments):
        begun = ToolCallDelta(index=index, id=f"call_{index}", type="function", function=FunctionDelta(name="paint"))
        yield Delta(content=None, tool_calls=[begun])
        for piece in (text[:3], text[3:]):
            part = ToolCallDelta(index=index, function=FunctionDelta(arguments=piece))
            yield Delta(content=None, tool_calls=[part])


def written(*deltas: Delta, reason: FinishReason = "stop", stream: bool = True) -> list[dict[str, Any]]:
    exchange = Chat(validated(ChatBody, {"model": "Iota:latest", "messages": HI, "stream": stream}), "iota")
    data = b"".join(exchange.answer(chunks(*deltas, reason=reason)))
    return [json.loads(line) for line in data.splitlines()]


def test_calls_come_whole() -> None:
    pieces = list(calls('{"colour": "red"}', "{}"))
    first, second, end = written(*pieces, reason="tool_calls")
    whole = [
        {"id": f"call_{i}", "function": {"index": i, "name": "paint", "arguments": arguments}}
        for i, arguments in enumerate(({"colour": "red"}, {}))
    ]
    assert [first["message"]["tool_calls"], second["message"]["tool_calls"]] == [whole[:1], whole[1:]]
    assert (end["done_reason"], end["load_duration"], first["model"]) == ("stop", 1_500_000, "Iota:latest")
    [answer] = written(*pieces, reason="tool_calls", stream=False)
    assert answer["message"] == {"role": "assistant", "content": "", "tool_calls": whole}


def test_text_before_calls() -> None:
    pieces = [Delta(content="Let me see."), *calls('{"colour": "\\ud83d"}')]
    first, second, _ = written(*pieces, reason="tool_calls")
    [answer] = written(*pieces, reason="tool_calls", stream=False)
    assert first["message"]["content"] == answer["message"]["content"] == "Let me see."
    assert second["message"]["tool_calls"] == answer["message"]["tool_calls"]
    assert answer["message"]["tool_calls"][0]["function"]["arguments"] == {"colour": "?"}


def test_a_call_that_was_cut_short_is_left_out() -> None:
    pieces = list(calls('{"colour": "red"}', '{"colour": "gr'))
    for stream in (True, False):
        answers = written(*pieces, reason="length", stream=stream)
        assert [len(answer["message"]["tool_calls"]) for answer in answers if "tool_calls" in answer["message"]] == [1]
        assert answers[-1]["done_reason"] == "length"


def test_thoughts() -> None:
    deltas = [Delta(reasoning_content="Two "), Delta(reasoning_content="?"), Delta(content="2")]
    *parts, _ = written(*deltas)
    assert [part["message"].get("thinking") for part in parts] == ["Two ", "?", None]
    [answer] = written(*deltas, stream=False)
    assert answer["message"] == {"role": "assistant", "content": "2", "thinking": "Two ?"}
    exchange = Generate(validated(GenerateBody, {"prompt": "hi", "stream": False}), None)
    answer = json.loads(b"".join(exchange.answer(chunks(*deltas))))
    assert (answer["response"], answer["thinking"], answer["model"]) == ("2", "Two ?", "iota:latest")


def test_while_there_is_nothing_to_send() -> None:
    """Clients parse every line, so there are no comments and no blank lines."""
    exchange = Chat(validated(ChatBody, {"model": "iota", "messages": HI}), "iota")
    waiting = json.loads(exchange.waiting("encoding 1/2"))
    assert (waiting["message"], waiting["done"]) == ({"role": "assistant", "content": ""}, False)
    assert waiting["status"] == "encoding 1/2"
    assert exchange.failure(HTTPError(500, "broken \ud800")) == b'{"error": "broken \\ud800"}\n'


# ---- models


def test_models(server: Server) -> None:
    [card] = server.get("/api/tags").json()["models"]
    assert card["name"] == card["model"] == "iota:latest"
    assert card["size"] > 4_000_000
    assert len(card["digest"]) == 64
    datetime.fromisoformat(card["modified_at"])
    assert card["details"]["families"] == [card["details"]["family"], "clip"]
    assert card["details"]["parameter_size"] == "2.5M"
    [loaded] = server.get("/api/ps").json()["models"]
    assert loaded["name"] == "iota:latest"
    for body in ({"model": "IOTA:latest"}, {"name": "iota"}, {"model": "iota", "verbose": True}):
        shown = post(server, "/api/show", **body).json()
        assert {"completion", "vision"} <= set(shown["capabilities"])
        assert "thinking" not in shown["capabilities"]
        architecture = shown["model_info"]["general.architecture"]
        assert shown["model_info"][f"{architecture}.context_length"] == 2048
        assert shown["details"]["format"] == "gguf"
        assert "message" in shown["template"]
    major, minor, _ = server.get("/api/version").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 20)


def test_probes(server: Server) -> None:
    reply = server.get("/")
    assert (reply.text, reply.headers["content-type"]) == ("Ollama is running", "text/plain; charset=utf-8")
    for path in ("/", "/api/version", "/api/tags"):
        assert requests.head(server.url + path, timeout=60).status_code == 200


def test_names(serve: Start) -> None:
    server = serve("--strict-model", "--api-key", "secret")
    key = {"authorization": "Bearer secret"}

    def show(name: str) -> requests.Response:
        return requests.post(f"{server.url}/api/show", json={"model": name}, headers=key, timeout=60)

    for name in ("iota", "Iota", "iota:latest", "library/iota"):
        assert show(name).status_code == 200, name
    refused(show("other"), 404, "model")
    body: Any = {"model": "IOTA:latest", "messages": HI, "options": {"num_predict": 1}, "stream": False}
    reply = requests.post(f"{server.url}/api/chat", json=body, headers=key, timeout=60)
    assert reply.json()["model"] == "IOTA:latest"
    refused(requests.post(f"{server.url}/api/chat", json={**body, "model": "other"}, headers=key, timeout=60), 404)
    for path in ("/api/tags", "/api/version", "/api/nothing"):
        refused(server.get(path), 401)


# ---- what is refused


def test_errors(server: Server) -> None:
    refused(post(server, "/api/chat", messages=HI, options={"temperature": 9}), 400, "options.temperature: ")
    refused(post(server, "/api/chat", messages=[{**HI[0], "images": ["AAAA"]}]), 400, "messages.0.images.0: ")
    refused(post(server, "/api/generate", prompt="hi", images=["AAAA"]), 400, "images.0: ")
    refused(post(server, "/api/generate", prompt="hi " * 3000), 400, "prompt: ")
    refused(post(server, "/api/generate", prompt="hi", suffix="a"), 400, "suffix: ")
    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"items": deep}
    refused(post(server, "/api/chat", messages=HI, format=deep), 400, "format: is nested too deep")
    refused(requests.post(f"{server.url}/api/chat", data=b"{", timeout=60), 400, "the body is not JSON")
    refused(requests.post(f"{server.url}/api/show", data=b"[]", timeout=60), 400)
    refused(server.get("/api/chat"), 405)
    refused(server.get("/api/nothing"), 404)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/pull", 403),
        ("POST", "/api/push", 403),
        ("POST", "/api/create", 403),
        ("POST", "/api/copy", 403),
        ("DELETE", "/api/delete", 403),
        ("POST", "/api/blobs/sha256:0", 403),
        ("POST", "/api/embed", 501),
        ("POST", "/api/embeddings", 501),
    ],
)
def test_not_served(server: Server, method: str, path: str, status: int) -> None:
    refused(requests.request(method, server.url + path, json={"model": "iota"}, timeout=60), status)


def test_embeddings_of_openai(server: Server) -> None:
    reply = requests.post(f"{server.base}/embeddings", json={"input": "a"}, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (501, "not_supported")


# ---- the OpenAPI document


def test_the_document_says_what_is_sent(server: Server, sample: str) -> None:
    document = openapi.document()

    def check(schema: str, value: Any) -> None:
        components = {"components": document["components"]}
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{schema}", **components})

    asked = {"messages": [{**HI[0], "images": [sample]}], "options": {"num_predict": 3}}
    check("ChatBody", {"model": "iota", **asked, "keep_alive": "5m", "think": True, "format": {"type": "object"}})
    for answer in [ask(server, "/api/chat", **asked), *lines(server, "/api/chat", **asked)]:
        check("OllamaChat", answer)
    for answer in lines(server, "/api/generate", prompt="hi", options={"num_predict": 3}):
        check("OllamaGenerated", answer)
    check("OllamaModels", server.get("/api/tags").json())
    check("OllamaModels", server.get("/api/ps").json())
    check("OllamaModel", post(server, "/api/show", model="iota").json())
    check("OllamaError", server.get("/api/nothing").json())
    assert set(document["paths"]) >= {f"/api/{name}" for name in ("chat", "generate", "show", "tags", "ps", "version")}
    assert not any(path.startswith("/v1/api") for path in document["paths"])


def test_nothing_is_named_after_a_file(server: Server, tmp_path: Path) -> None:
    """A name that looks like a path is only a name."""
    (tmp_path / "x").write_text("x")
    assert post(server, "/api/show", model=str(tmp_path / "x")).json()["model_info"]["general.basename"] == "iota"
