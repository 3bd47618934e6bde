"""OpenAI's Responses: what is its own. test_protocols.py has what it shares with the other APIs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

import jsonschema
import openai
import pytest
import requests
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from pocketvlm.errors import RequestError
from pocketvlm.messages import (
    ChatCompletionChunk,
    ChunkChoice,
    CompletionTokensDetails,
    Delta,
    FunctionDelta,
    PromptTokensDetails,
    Timings,
    ToolCallDelta,
    Usage,
)
from pocketvlm.server import openapi
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.protocols.call_arguments import parsed_arguments
from pocketvlm.server.protocols.responses.exchange import ResponseExchange
from pocketvlm.server.protocols.responses.items import MessageItem
from pocketvlm.server.protocols.responses.routes import Responses
from pocketvlm.server.protocols.responses.stored import ResponseLimits, ResponseStore, StoredItem
from server.adapters import events
from server.conftest import Server, refused

HI = {"role": "user", "content": "hi"}
FUNCTION = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def post(server: Server, body: Any, path: str = "/v1/responses") -> requests.Response:
    return requests.post(server.url + path, data=json.dumps(body), timeout=60)


def answer(server: Server, **body: Any) -> dict[str, Any]:
    reply = post(server, body)
    assert reply.status_code == 200, reply.text
    response: dict[str, Any] = reply.json()
    Response.model_validate(response)
    return response


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def look(uri: str) -> dict[str, Any]:
    content = [
        {"type": "input_text", "text": "How many shapes are there?"},
        {"type": "input_image", "image_url": uri, "detail": "auto"},
    ]
    return {"role": "user", "content": content}


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


# ---- the request, translated


def parsed(**body: Any) -> ResponseExchange:
    return Responses(ResponseStore()).parse({"input": "hi", **body})


def messages_of(*items: Any, **body: Any) -> list[dict[str, Any]]:
    messages = parsed(input=list(items), **body).request.messages
    return [message.model_dump(exclude_none=True) for message in messages]


def test_items_of_one_answer_are_one_message() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": '{"at": "x"}'}
    [instructions, first, answered, result, last] = messages_of(
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        call,
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "seen"}]},
        {"role": "developer", "content": "Be short."},
        instructions="Look.",
    )
    assert instructions == {"role": "system", "content": "Look."}
    assert first["content"][0]["text"] == "a"
    assert (answered["reasoning_content"], answered["content"][0]["text"]) == ("Hm.", "Wait.")
    assert [call["id"] for call in answered["tool_calls"]] == ["c1", "c2"]
    assert (result["role"], result["tool_call_id"], result["content"][0]["text"]) == ("tool", "c1", "seen")
    assert last == {"role": "developer", "content": "Be short."}


def test_two_answers_stay_two() -> None:
    said = [{"type": "message", "role": "assistant", "content": text} for text in ("One.", "Two.")]
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    assert [message["content"] for message in messages_of(HI, said[0], thought, said[1], HI)] == [
        "hi",
        "One.",
        "Two.",
        "hi",
    ]


@pytest.mark.parametrize(
    ("item", "thought"),
    [
        (
            {"content": [{"type": "reasoning_text", "text": "a"}], "summary": [{"type": "summary_text", "text": "b"}]},
            "a",
        ),
        ({"content": None, "summary": [{"type": "summary_text", "text": "b"}]}, "b"),
        ({"summary": [], "encrypted_content": "pocketvlm-thought:w6Q="}, "ä"),
        ({"summary": [], "encrypted_content": "pocketvlm-thought:!"}, None),
        ({"summary": [], "encrypted_content": "gAAAAB-of-another-service"}, None),
    ],
)
def test_thoughts(item: dict[str, Any], thought: str | None) -> None:
    said = {"role": "assistant", "content": "So."}
    [_, answered, _] = messages_of(HI, {"type": "reasoning", **item}, said, HI)
    assert answered.get("reasoning_content") == thought


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 5}, {"limit": 5}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"effort": "high"}),
        ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True, "top_logprobs": None}),
        ({"include": ["reasoning.encrypted_content"]}, {"logprobs": None}),
        ({"temperature": 0.5, "top_p": 0.5, "seed": 1}, {"temperature": 0.5, "top_p": 0.5, "seed": 1}),
        ({"text": {"format": {"type": "json_object"}, "verbosity": "low"}}, {"response_format.type": "json_object"}),
        ({"tools": [FUNCTION], "parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "look"}},
            {"tool_choice.function.name": "look"},
        ),
    ],
)
def test_fields(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    request = parsed(**fields).request
    for path, value in expected.items():
        at: Any = request
        for name in path.split("."):
            at = getattr(at, name)
        assert at == value


def test_other_tools() -> None:
    """Those that run at the client's become functions, those that run at OpenAI's are left out."""
    tools = [
        {"type": "web_search", "external_web_access": True},
        {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}},
        {"type": "local_shell"},
        {"type": "namespace", "name": "mcp__files__", "tools": [{**FUNCTION, "strict": False}]},
        {"type": "web_search_preview_2025_03_11"},
    ]
    exchange = parsed(tools=tools)
    functions = [tool.function for tool in exchange.request.tools or ()]
    assert [function.name for function in functions] == ["patch", "local_shell", "mcp__files__look"]
    assert "start: X" in str(functions[0].description)
    calls = messages_of(
        HI,
        {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "*** Begin"},
        {
            "type": "local_shell_call",
            "call_id": "b",
            "status": "completed",
            "action": {"type": "exec", "command": ["ls"]},
        },
        {"type": "function_call", "call_id": "c", "name": "look", "namespace": "mcp__files__", "arguments": "{}"},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "Done"},
        {"type": "local_shell_call_output", "id": "b", "output": '{"stdout": ""}'},
        {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
        tools=tools,
    )
    assert [call["function"]["name"] for call in calls[1]["tool_calls"]] == [function.name for function in functions]
    assert json.loads(calls[1]["tool_calls"][0]["function"]["arguments"]) == {"input": "*** Begin"}
    assert [message.get("tool_call_id") for message in calls[2:]] == ["a", "b"]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}, tools[0]]}
    choice: Any = parsed(tools=tools, tool_choice=allowed).request.tool_choice
    assert [tool.function.name for tool in choice.allowed_tools.tools] == ["patch"]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"input": None}, "input", "required"),
        ({"input": 5}, "input", "string or a list of items"),
        ({"input": []}, "input", "empty"),
        ({"input": [HI, {"type": "telepathy"}]}, "input.1.type", "one of apply_patch_call"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "must be"),
        ({"input": [{"role": "user"}]}, "input.0.content", "required"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input.0.content.0.type", "text"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input.0.content.0",
            "another service",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0",
            "sha256",
        ),
        ({"input": [HI, {"type": "function_call", "name": "x", "arguments": 5}]}, "input.1.arguments", "JSON string"),
        ({"input": [HI, {"type": "function_call"}]}, "input.1.name", "required"),
        ({"inputs": "hi"}, "inputs", "did you mean input?"),
        ({"max_tokens": 5}, "max_tokens", "did you mean m"),
        ({"messages": [HI]}, "messages", "unknown field"),
        ({"background": True}, "background", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "instructions"),
        ({"temperature": 3}, "temperature", "at most 2"),
        ({"seed": -5}, "seed", "at least 0"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "must be one of"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.json_schema", "required"),
        ({"text": {"formt": {}}}, "text.formt", "did you mean format?"),
        ({"tools": [{"type": "web_search"}, {"type": "functoin", "name": "x"}]}, "tools.1.type", "must be one of"),
        ({"tools": [{"type": "web_search"}, {"type": "function"}]}, "tools.1", ""),
        ({"tools": [{"type": "web_search"}, {**FUNCTION, "name": "a<b"}]}, "tools.1.name", "match"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": 5}]}, "tools.0.tools", "list"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "does not exist here"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice", "other"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": {"type": []}}, "tool_choice.type", ""),
        ({"tools": [{"type": [1], "name": "x"}]}, "tools.0.type", "must be one of"),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "tools": [{"type": "mcp"}, {"type": {}}]}},
            "tool_choice.tools.1.type",
            "",
        ),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": [FUNCTION]}},
            "tool_choice.mode",
            "",
        ),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "unknown here"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input.0.id", "unknown here"),
        ({"user": "\ud83d"}, "user", "surrogate"),
        ({"model": "\ud83d"}, "model", "surrogate"),
        ({"tool_choice": "\ud83d"}, "tool_choice", "surrogate"),
        ({"tool_choice": 5}, "tool_choice", "must be auto"),
        ({"metadata": {"a": "\ud83d"}}, "metadata.a", "surrogate"),
        ({"input": [{**HI, "unknown": "\ud83d"}]}, "input.0", "surrogate"),
        ({"input": [{**HI, "unknown": [float("nan")]}]}, "input.0", "finite"),
        ({"input": [{"type": "web_search_call", "action": deep(100)}]}, "input.0", "nested too deep"),
        ({"input": [HI, {"type": "function_call_output", "output": deep(100)}]}, "input.1.output", "nested too deep"),
    ],
)
def test_wrong_fields(body: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises((RequestError, HTTPError)) as caught:
        parsed(**body)
    found = caught.value.param or ""
    assert found == param or (param == "tools.1" and found.startswith("tools.1"))
    assert says in caught.value.message


def test_wrong_fields_over_http(server: Server) -> None:
    for body, status, param, code in (
        ({"input": "hi", "inpt": 1}, 400, "inpt", "invalid_value"),
        ({"input": [HI, look("data:image/png;base64,AAAA")]}, 400, "input.1.content.1.image_url", None),
        ({"input": "hi", "previous_response_id": "x"}, 400, "previous_response_id", "previous_response_not_found"),
        ({"input": [{"id": "msg_x", "type": "item_reference"}]}, 404, "input.0.id", "item_not_found"),
    ):
        assert refused(post(server, body), status, param, code).startswith(f"{param}: ")
    schema = {"type": "object", "properties": {"x": {"not": {}}}}
    strict = {"type": "function", "name": "f", "parameters": schema, "strict": True}
    body = {"input": "hi", "tools": [{"type": "web_search"}, strict]}
    refused(post(server, body), 400, "tools.1.parameters.properties.x.not", "unsupported")


# ---- the answer and its events, from chunks


def chunks_of(*deltas: Delta, reason: Any = "stop") -> Iterator[ChatCompletionChunk]:
    head: dict[str, Any] = {"id": "chatcmpl-1", "created": 1, "model": "iota"}
    for delta in deltas:
        yield ChatCompletionChunk(**head, choices=[ChunkChoice(index=0, delta=delta)])
    yield ChatCompletionChunk(**head, choices=[ChunkChoice(index=0, delta=Delta(), finish_reason=reason)])
    usage = Usage(
        prompt_tokens=7,
        completion_tokens=5,
        total_tokens=12,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=3),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=2),
    )
    yield ChatCompletionChunk(**head, choices=[], usage=usage, timings=Timings())


def streamed(exchange: ResponseExchange, *deltas: Delta, reason: Any = "stop") -> list[dict[str, Any]]:
    body = b"".join(exchange.answer(chunk for chunk in chunks_of(*deltas, reason=reason))).decode()
    found = [json.loads(data) for _, data in events(body)]
    for one in found:
        EVENT.validate_python(one)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def whole(exchange: ResponseExchange, *deltas: Delta, reason: Any = "stop") -> dict[str, Any]:
    [body] = exchange.answer(chunk for chunk in chunks_of(*deltas, reason=reason))
    response: dict[str, Any] = json.loads(body)
    Response.model_validate(response)
    return response


def call(name: str, *pieces: str, index: int = 0) -> list[Delta]:
    first = ToolCallDelta(index=index, id=f"call_{index}", type="function", function=FunctionDelta(name=name))
    rest = [ToolCallDelta(index=index, function=FunctionDelta(arguments=piece)) for piece in pieces]
    return [Delta(content=None, tool_calls=[one]) for one in (first, *rest)]


DELTAS = [
    Delta(role="assistant"),
    Delta(reasoning_content="Hm"),
    Delta(reasoning_content="."),
    Delta(content="Wait"),
    Delta(content="!"),
    *call("look", '{"at": ', '"x"}'),
    *call("patch", '{"input": "ab', 'c"}', index=1),
]
TOOLS = [FUNCTION, {"type": "custom", "name": "patch"}, {"type": "local_shell"}]


def test_the_order_of_events() -> None:
    found = streamed(parsed(stream=True, tools=TOOLS), *DELTAS)
    assert [one["type"].removeprefix("response.") for one in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    ids = {one["item_id"] for one in found if "item_id" in one}
    assert ids == {item["id"] for item in found[-1]["response"]["output"]}
    indexes = [one["output_index"] for one in found if "output_index" in one]
    assert indexes == sorted(indexes) and set(indexes) == {0, 1, 2, 3}


def test_the_same_items_whole_and_streamed() -> None:
    def without_ids(items: Any) -> Any:
        return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in items]

    response = whole(parsed(tools=TOOLS), *DELTAS)
    found = streamed(parsed(stream=True, tools=TOOLS), *DELTAS)
    assert without_ids(found[-1]["response"]["output"]) == without_ids(response["output"])
    thought, message, function, custom = response["output"]
    assert (thought["content"][0]["text"], thought["summary"], thought["encrypted_content"]) == ("Hm.", [], None)
    assert (message["content"][0]["text"], function["arguments"]) == ("Wait!", '{"at": "x"}')
    assert (custom["type"], custom["input"]) == ("custom_tool_call", "abc")
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 3


def test_thoughts_as_a_summary_and_carried() -> None:
    wanted = {"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"], "stream": True}
    found = streamed(parsed(**wanted), Delta(reasoning_content="Hm."), Delta(content="So."))
    kinds = [one["type"] for one in found]
    assert "response.reasoning_summary_text.delta" in kinds and "response.reasoning_text.delta" not in kinds
    [thought, said] = found[-1]["response"]["output"]
    assert (thought["summary"], thought["content"]) == ([{"type": "summary_text", "text": "Hm."}], [])
    sent_back = {"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]}
    [_, answered, _] = messages_of(HI, sent_back, said, HI)
    assert answered["reasoning_content"] == "Hm."


def test_a_call_of_a_shell_and_of_a_namespace() -> None:
    tools = [
        {"type": "local_shell"},
        {"type": "namespace", "name": "mcp__a__", "description": "A.", "tools": [FUNCTION]},
    ]
    deltas = [*call("local_shell", '{"command": ["ls"]}'), *call("mcp__a__look", "{}", index=1)]
    [shell, function] = whole(parsed(tools=tools), *deltas)["output"]
    assert (shell["type"], shell["action"]) == ("local_shell_call", {"type": "exec", "command": ["ls"], "env": {}})
    assert (function["name"], function["namespace"]) == ("look", "mcp__a__")


def test_ends() -> None:
    cut = whole(parsed(), Delta(reasoning_content="Hm"), reason="length")
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in cut["output"]] == ["incomplete"]
    [empty] = whole(parsed())["output"]
    assert (empty["type"], empty["status"], empty["content"][0]["text"]) == ("message", "completed", "")
    last = streamed(parsed(stream=True), Delta(content="a"), reason="length")[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")


def test_a_stream_that_waits_and_fails() -> None:
    """The first event comes before the answer, others follow while it waits, and the failure has the next number."""
    exchange = parsed(stream=True, model="iota")
    body = exchange.waiting("queued") + exchange.waiting("encoding 1/2") + exchange.waiting("working")
    body += exchange.failure(HTTPError(500, "it broke", code="engine_crashed"))
    found = [(name, json.loads(data)) for name, data in events(body.decode())]
    assert [name for name, _ in found] == [
        "response.created",
        "response.in_progress",
        "response.in_progress",
        "response.failed",
        "error",
    ]
    assert [data["sequence_number"] for _, data in found] == list(range(5))
    assert found[3][1]["response"]["error"] == {"code": "engine_crashed", "message": "it broke"}
    assert found[4][1]["error"]["code"] == found[4][1]["code"] == "engine_crashed"
    assert exchange.failure(HTTPError(500, "again")).startswith(b"event: response.failed")


def test_waiting_ends_where_the_answer_begins() -> None:
    exchange = parsed(stream=True)
    stream = exchange.answer(chunk for chunk in chunks_of(Delta(content="a")))
    next(stream)
    assert exchange.waiting("working") == b": working\n\n"


def test_openais_client_raises_what_fails_in_a_stream() -> None:
    exchange = parsed(stream=True)
    body = exchange.waiting("queued") + exchange.failure(HTTPError(500, "it broke", code="engine_crashed"))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(body)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as replay:
        threading.Thread(target=replay.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{replay.server_address[1]}/v1"
        client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
        with client, pytest.raises(openai.APIError, match="it broke") as caught:
            list(client.responses.create(model="iota", input="hi", stream=True))
        replay.shutdown()
    assert caught.value.code == "engine_crashed"


# ---- kept answers


def test_a_conversation_by_its_id(server: Server, sample_uri: str) -> None:
    first = answer(server, input=[look(sample_uri)], instructions="Answer.", metadata={"a": "b"})
    assert (text_of(first), first["store"], first["metadata"]) == ("2", True, {"a": "b"})
    assert first["instructions"] == "Answer."
    second = answer(server, input="What colour is the circle?", previous_response_id=first["id"])
    assert (text_of(second), second["previous_response_id"]) == ("Red", first["id"])
    shown = server.get(f"/v1/responses/{second['id']}").json()
    assert shown == second
    listed = server.get(f"/v1/responses/{second['id']}/input_items?order=asc").json()
    assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"]
    assert (listed["first_id"], listed["has_more"]) == (listed["data"][0]["id"], False)
    page = server.get(f"/v1/responses/{second['id']}/input_items?limit=1&after={listed['last_id']}").json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == ([first["output"][0]["id"]], True)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    question = {"role": "user", "content": "What colour is the circle?"}
    again = answer(server, input=[look(sample_uri), reference, question])
    assert text_of(again) == "Red"
    gone = requests.delete(f"{server.base}/responses/{first['id']}", timeout=60)
    assert gone.json() == {"id": first["id"], "object": "response", "deleted": True}
    refused(server.get(f"/v1/responses/{first['id']}"), 404, "id", "response_not_found")
    refused(requests.delete(f"{server.base}/responses/{first['id']}", timeout=60), 404)
    body = {"input": "And?", "previous_response_id": first["id"]}
    refused(post(server, body), 400, "previous_response_id", "previous_response_not_found")
    # The second has the first's items.
    third = answer(server, input="How many shapes are there?", previous_response_id=second["id"])
    assert text_of(third) == "2"
    for query in ("limit=0", "limit=101", "limit=x", "after=x"):
        refused(server.get(f"/responses/{second['id']}/input_items?{query}"), 400)
    refused(server.get(f"/responses/{second['id']}?stream=true"), 400)


def test_without_new_input_a_new_answer_follows(server: Server, sample_uri: str) -> None:
    first = answer(server, input=[look(sample_uri)])
    second = answer(server, previous_response_id=first["id"], max_output_tokens=2)
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def test_what_is_not_kept(server: Server) -> None:
    response = answer(server, input="hi", store=False, max_output_tokens=1)
    assert response["store"] is False
    refused(server.get(f"/v1/responses/{response['id']}"), 404)
    body = {"input": "hi", "max_output_tokens": 1, "stream": True, "store": False}
    last = json.loads([data for _, data in events(post(server, body).text)][-1])["response"]
    refused(server.get(f"/v1/responses/{last['id']}"), 404)


def test_pictures_by_their_handle(server: Server, sample_png: Any) -> None:
    handle = requests.post(f"{server.base}/images", data=sample_png.read_bytes(), timeout=60).json()["id"]
    message = look(handle)
    assert text_of(answer(server, input=[message])) == "2"
    message["content"][1] = {"type": "input_image", "file_id": handle}
    assert text_of(answer(server, input=[message])) == "2"
    message["content"][1] = {"type": "input_image", "file_id": "sha256:" + 64 * "0"}
    refused(post(server, {"input": [message]}), 404, "input.0.content.1.file_id", "image_not_found")


def item(text: str) -> StoredItem:
    return StoredItem({"role": "user", "content": text}, MessageItem(role="user", content=text))


def test_the_store_shares_items_and_forgets_the_least_recently_used() -> None:
    now = 0.0
    store = ResponseStore(ResponseLimits(seconds=100, count=3, size=18_000), lambda: now)
    picture = item("p" * 4000)
    assert store.add("a", b"{}", [picture], [item("1")])
    assert store.add("b", b"{}", [item("p" * 4000), item("2")], [])
    assert 10_000 < store.held()[1] < 11_000  # the picture counts once, and each of three items 2,000
    assert store.item(picture.id) is not None
    assert store.find("a")
    assert store.add("c", b"{}", [item("c" * 4000)], [])
    assert store.add("d", b"{}", [], [])  # the fourth
    assert [bool(store.find(id)) for id in "abcd"] == [True, False, True, True]
    assert store.add("e", b"{}", [item("e" * 4000)], [])  # over the bytes
    assert [bool(store.find(id)) for id in "acde"] == [False, True, True, True]
    assert store.item(picture.id) is None
    assert not store.add("f", b"{}", [item("f" * 18_000)], [])
    assert store.remove("e") and not store.remove("e")
    now = 101.0
    assert store.held() == (0, 0)


def test_equal_items_and_equal_ids() -> None:
    """Each item of a conversation has an id of its own; an id names its first item."""
    store = ResponseStore()
    sent = [HI, HI, {**HI, "id": "msg_1"}, {**HI, "id": "msg_1", "content": "other"}, {**HI, "id": "msg_1"}]
    exchange = Responses(store).parse({"input": sent})
    response = store.find(whole(exchange, Delta(content="a"))["id"])
    assert response is not None
    ids = [item.id for item in response.conversation]
    assert len({*ids}) == 6
    named = store.item("msg_1")
    assert named is not None and named.item == MessageItem(id="msg_1", role="user", content="hi")
    again = Responses(store).parse({"input": sent})
    second = store.find(whole(again, Delta(content="b"))["id"])
    assert second is not None and [item.id for item in second.input] == ids[:5]
    other = Responses(store).parse({"input": [{**HI, "id": "msg_1", "content": "another"}]})
    third = whole(other, Delta(content="c"))["id"]
    assert store.item("msg_1") is named
    assert store.remove(third) and store.item("msg_1") is named
    assert store.remove(response.id) and store.item("msg_1") is named
    assert store.remove(second.id) and store.item("msg_1") is None
    assert store.held() == (0, 0)


def test_equal_items_are_listed_to_the_end(server: Server) -> None:
    id = answer(server, input=[HI, HI, HI], max_output_tokens=1)["id"]
    listed = openai.OpenAI(base_url=server.base, api_key="none").responses.input_items.list(id, limit=1)
    assert len([*zip(listed, range(9), strict=False)]) == 3
    assert "pocketvlm_kept_responses_bytes" in server.get("/metrics").text


def test_fields_are_echoed() -> None:
    exchange = parsed(truncation="auto", max_tool_calls=2, text={"verbosity": "low"})
    response = whole(exchange, Delta(content="a"))
    assert (response["truncation"], response["max_tool_calls"]) == ("auto", 2)
    assert response["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    odd = whole(parsed(max_tool_calls="many", text={"verbosity": "\ud83d"}), Delta(content="a"))
    assert (odd["truncation"], odd["max_tool_calls"], odd["text"]) == ("disabled", None, {"format": {"type": "text"}})


def test_the_model_of_the_first_event(server: Server) -> None:
    reply = post(server, {"input": "hi", "max_output_tokens": 1, "stream": True})
    found = [json.loads(data) for _, data in events(reply.text)]
    assert found[0]["response"]["model"] == found[-1]["response"]["model"] == "iota"


def test_what_is_not_enforced_has_the_clients_path(server: Server) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    response = answer(
        server,
        input="hi",
        max_output_tokens=1,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema}},
        tools=[{"type": "web_search"}, {**FUNCTION, "parameters": schema}],
    )
    assert response["not_enforced"] == [
        "text.format.schema.properties.x.uniqueItems",
        "tools.1.parameters.properties.x.uniqueItems",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": "\\ud83d", "b": 1}', {"a": "?", "b": 1}),
        ('{"a": "b', {"a": "b"}),
        ('{"a": ' + 500 * "[" + 500 * "]" + "}", {}),
        ('{"a": ' + 5000 * "9" + "}", {}),
        ("[1]", {}),
        ("", {}),
    ],
)
def test_arguments_of_calls(arguments: str, expected: dict[str, Any]) -> None:
    assert parsed_arguments(arguments) == expected


def test_a_store_of_nothing() -> None:
    store = ResponseStore(ResponseLimits(count=0))
    exchange = Responses(store).parse({"input": "hi"})
    assert whole(exchange, Delta(content="a"))["store"] is False
    with pytest.raises(RequestError, match="finite"):
        ResponseLimits(seconds=float("inf"))


# ---- bodies of clients


def codex(uri: str) -> dict[str, Any]:
    """A body with the fields that Codex's source writes, in its second turn."""
    text = {"type": "string"}
    command = {"type": "object", "properties": {"cmd": text}, "required": ["cmd"], "additionalProperties": False}
    function = {
        "type": "function",
        "name": "exec_command",
        "description": "Run.",
        "strict": False,
        "parameters": command,
    }
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch"'}
    return {
        "model": "iota",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context>"}]},
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
            {"type": "function_call", "name": "exec_command", "arguments": '{"cmd":"ls"}', "call_id": "call_1"},
            {
                "type": "custom_tool_call",
                "status": "completed",
                "call_id": "call_2",
                "name": "apply_patch",
                "input": "*",
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "a.png"},
            {"type": "custom_tool_call_output", "call_id": "call_2", "output": "Done"},
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Listed."}],
                "phase": "final_answer",
            },
            look(uri),
        ],
        "tools": [
            function,
            {"type": "custom", "name": "apply_patch", "description": "Patch.", "format": grammar},
            {
                "type": "namespace",
                "name": "mcp__demo__",
                "description": "Demo.",
                "tools": [{**function, "name": "look"}],
            },
            {"type": "tool_search", "execution": "sync", "description": "Search.", "parameters": command},
            {"type": "local_shell"},
            {"type": "web_search", "external_web_access": False},
            {"type": "image_generation", "output_format": "png"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "019a",
        "text": {"verbosity": "medium"},
        "service_tier": "priority",
        "client_metadata": {"x-codex-installation-id": "1"},
    }


def test_the_schemas_say_what_is_accepted(server: Server, sample_uri: str) -> None:
    document = openapi.document()

    def validator(name: str) -> jsonschema.Draft202012Validator:
        schemas = {"components": document["components"]}
        return jsonschema.Draft202012Validator({**schemas, "$ref": f"#/components/schemas/{name}"})

    bodies: list[dict[str, Any]] = [
        codex(sample_uri),
        {"input": "hi", "store": None},
        {"input": [{"id": "msg_1"}, {"id": "msg_2", "role": "assistant", "content": None}]},
        {"previous_response_id": "resp_1", "tool_choice": {"type": "function", "name": "look"}, "tools": [FUNCTION]},
    ]
    for body in bodies:
        validator("CreateResponse").validate(body)
    for wrong in ({"input": 5}, {"input": [{"type": "telepathy"}]}, {"inpt": "hi"}, {"temperature": 3}):
        assert not validator("CreateResponse").is_valid(wrong)
    validator("Response").validate(answer(server, input=[look(sample_uri)], top_logprobs=1))
    validator("Response").validate(whole(parsed(tools=TOOLS), *DELTAS))


def test_a_body_of_codex(server: Server, sample_uri: str) -> None:
    body = {**codex(sample_uri), "max_output_tokens": 4}
    reply = post(server, body)
    assert reply.status_code == 200, reply.text
    last = json.loads([data for _, data in events(reply.text)][-1])["response"]
    places = {note.partition(":")[0] for note in last["notes"]}
    assert places == {"tools.3", "tools.5", "tools.6", "iota is guessing"}
    assert len(last["tools"]) == 4
    assert 0 < last["usage"]["output_tokens"] <= 4


def test_fields_of_other_clients(server: Server) -> None:
    """What pydantic-ai, the AI SDK, LangChain and others send beside the fields of a first request."""
    answer(
        server,
        input=[{"type": "message", "role": "user", "content": "hi"}],
        max_output_tokens=1,
        truncation="auto",
        service_tier="auto",
        user="u",
        metadata={"a": "b"},
        max_tool_calls=2,
        safety_identifier="s",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        stream_options={"include_obfuscation": False},
        include=["file_search_call.results", "web_search_call.action.sources"],
        tools=[],
        text={"format": {"type": "text"}},
        reasoning={"effort": None, "summary": None, "context": "auto"},
        top_k=5,
        stop=["x"],
    )
