"""What is Anthropic's own about the Messages API; test_protocols.py has what all APIs share."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from pocketvlm.chat.completion import fold
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
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.protocols.anthropic.exchange import Messages
from server.adapters import Anthropic, events
from server.conftest import Server, refused

COUNT, TWO = "How many shapes are there?", "2"
HI: dict[str, Any] = {"role": "user", "content": "hi"}
PAINT: dict[str, Any] = {
    "name": "paint",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
BILLING = "x-anthropic-billing-header: cc_version=2.1.126.c5f; cc_entrypoint=cli; cch=%s;"


def post(server: Server, body: Any, path: str = "/v1/messages", **options: Any) -> requests.Response:
    return requests.post(server.url + path, data=json.dumps(body), timeout=60, **options)


def ask(server: Server, *messages: Any, **fields: Any) -> dict[str, Any]:
    reply = post(server, {"messages": messages, "max_tokens": 60, **fields})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def text_of(answer: dict[str, Any]) -> str:
    return "".join(block["text"] for block in answer["content"] if block["type"] == "text")


def error(reply: requests.Response, status: int = 400) -> str:
    assert reply.status_code == status, reply.text
    return Anthropic().error(reply.json())


def image(uri: str, kind: str = "base64") -> dict[str, Any]:
    if kind == "base64":
        return {"type": "image", "source": {"type": kind, "media_type": "image/png", "data": uri.partition(",")[2]}}
    return {"type": "image", "source": {"type": kind, {"url": "url", "file": "file_id"}[kind]: uri}}


@pytest.fixture(scope="module")
def handle(server: Server, sample_png: Any) -> str:
    reply = requests.post(f"{server.base}/images", data=sample_png.read_bytes(), timeout=60)
    return str(reply.json()["id"])


# ---- answers


def test_an_answer(server: Server, sample_uri: str) -> None:
    answer = ask(server, {"role": "user", "content": [image(sample_uri), {"type": "text", "text": COUNT}]})
    assert answer.pop("id").startswith("msg_")
    usage, timings = answer.pop("usage"), answer.pop("timings")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "iota",
        "content": [{"type": "text", "text": TWO}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    assert usage["cache_creation_input_tokens"] == 0
    assert usage["output_tokens"] > 0
    assert timings["images"][0]["original_size"] == [640, 480]


def test_pictures_from_everywhere(server: Server, sample_uri: str, handle: str) -> None:
    for block in (image(sample_uri), image(sample_uri, "url"), image(handle, "url"), image(handle, "file")):
        cached = {**block, "cache_control": {"type": "ephemeral", "ttl": "1h"}, "transformations": {}}
        assert text_of(ask(server, {"role": "user", "content": [cached, {"type": "text", "text": COUNT}]})) == TWO


def test_cached_tokens_are_counted_apart(server: Server) -> None:
    first = {"role": "user", "content": "Tell me of a circle that is red. " * 9}
    ask(server, first, max_tokens=1)
    usage = ask(server, first, max_tokens=1)["usage"]
    assert usage["cache_read_input_tokens"] > usage["input_tokens"] > 0
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count(server, first)


def count(server: Server, *messages: Any, **fields: Any) -> int:
    reply = post(server, {"messages": messages, **fields}, "/v1/messages/count_tokens")
    assert reply.status_code == 200, reply.text
    assert set(reply.json()) == {"input_tokens"}
    tokens: int = reply.json()["input_tokens"]
    return tokens


def test_the_count_is_that_of_the_answer(server: Server, sample_uri: str) -> None:
    turn = {"role": "user", "content": [image(sample_uri), {"type": "text", "text": COUNT}]}
    for fields in ({}, {"system": "Be brief."}, {"tools": [PAINT], "tool_choice": {"type": "auto"}}):
        usage = ask(server, turn, **fields)["usage"]
        assert count(server, turn, **fields) == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert error(post(server, {"messages": []}, "/v1/messages/count_tokens")).startswith("messages:")


def test_why_it_stopped(server: Server) -> None:
    describe = {"role": "user", "content": "Describe the picture."}
    assert ask(server, describe, max_tokens=2)["stop_reason"] == "max_tokens"
    whole = text_of(ask(server, describe, max_tokens=8))
    stops = [f"never {n}" for n in range(20)]
    stopped = ask(server, describe, stop_sequences=[*stops, whole[5:8]])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", whole[5:8])
    assert text_of(stopped) == whole[:5]
    chat = server.ask("Describe the picture.", stop=[whole[5:8]])["choices"][0]
    assert (chat["finish_reason"], chat["stop_reason"]) == ("stop", whole[5:8])


def test_one_call_at_most(server: Server) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    [use] = ask(server, HI, tools=[PAINT], tool_choice=choice)["content"]
    assert (use["type"], use["name"], use["id"][:6]) == ("tool_use", "paint", "toolu_")
    assert use["input"]["colour"] in ("red", "green")
    two = [{**PAINT, "name": "draw"}, {**PAINT, "type": "custom", "strict": True, "cache_control": None}]
    answer = ask(server, HI, tools=two, tool_choice={"type": "tool", "name": "paint"})
    assert [use["name"] for use in answer["content"]] == ["paint"]
    assert ask(server, HI, tools=[PAINT], tool_choice={"type": "none"})["stop_reason"] != "tool_use"


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_schema(server: Server, place: str) -> None:
    form = {"type": "json_schema", "schema": PAINT["input_schema"]}
    answer = ask(server, HI, **{place: {"format": form} if place == "output_config" else form})
    assert json.loads(text_of(answer))["colour"] in ("red", "green")
    begun = {"role": "assistant", "content": '{"colour": "gr'}
    answer = ask(server, HI, begun, **{place: {"format": form} if place == "output_config" else form})
    assert json.loads(begun["content"] + text_of(answer)) == {"colour": "green"}


# ---- requests


def chat_messages(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    """The messages of the request that is made of these."""
    request = Messages.parse({"messages": messages, "max_tokens": 1, **fields}).request
    return [message.model_dump(mode="json", exclude_none=True) for message in request.messages]


def texts(*words: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": word} for word in words]


def test_a_history(sample_uri: str) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "it"}}
    answer = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        *texts("Let me look."),
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        use,
        {**use, "id": "toolu_2"},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [image(sample_uri), *texts("seen")]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "dark", "is_error": True},
        *texts("And now?"),
    ]
    messages = chat_messages(
        {"role": "user", "content": texts("Look.")},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": results},
        {"role": "system", "content": "Be brief."},
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user", "system"]
    assert (messages[1]["reasoning_content"], messages[1]["content"]) == ("Hm.", texts("Let me look."))
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["toolu_1", "toolu_2"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": "it"}}
    assert (messages[2]["tool_call_id"], messages[2]["content"][1:]) == ("toolu_1", texts("seen"))
    assert (messages[2]["content"][0]["type"], messages[3]["content"]) == ("image", "Error: dark")


def test_documents_of_text(sample_uri: str) -> None:
    plain = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    blocks = {"type": "document", "source": {"type": "content", "content": [*texts("one"), image(sample_uri)]}}
    found = {"type": "search_result", "source": "https://a.example", "title": "A", "content": texts("x", "y")}
    [message] = chat_messages({"role": "user", "content": [plain, blocks, found]})
    kinds = [part.get("text", part["type"]) for part in message["content"]]
    assert kinds == ["T", "D", "one", "image", "A\nhttps://a.example\nx\ny"]


def test_the_system_text() -> None:
    for system in (texts(BILLING % "1", "Be brief."), "Be brief.", f"{BILLING % '2'}\nBe brief."):
        first, _ = chat_messages(HI, system=system)
        assert first["role"] == "system"
        assert first["content"] in ("Be brief.", texts("Be brief."))
    for nothing in (BILLING % "3", texts(BILLING % "4"), "", [], None):
        assert [message["role"] for message in chat_messages(HI, system=nothing)] == ["user"]


def test_tools_that_are_found_later() -> None:
    later = {**PAINT, "name": "later", "defer_loading": True}
    fields = {"tools": [later, PAINT]}
    assert [tool.function.name for tool in Messages.parse({"messages": [HI], **fields}).request.tools or ()] == [
        "paint"
    ]
    reference = {"type": "tool_result", "content": [{"type": "tool_reference", "tool_name": "later"}]}
    body = {"messages": [HI, {"role": "user", "content": [reference]}], **fields}
    assert [tool.function.name for tool in Messages.parse(body).request.tools or ()] == ["later", "paint"]


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {"enable_thinking": False, "thinking": False}),
        ({"output_config": {"effort": "high"}}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "between_tools"}}, {"enable_thinking": True, "thinking": True}),
    ],
)
def test_thinking(fields: dict[str, Any], variables: dict[str, bool]) -> None:
    assert Messages.parse({"messages": [HI], **fields}).request.template_variables == variables


def test_effort_counts_while_thinking() -> None:
    def effort(kind: str) -> str | None:
        fields = {"thinking": {"type": kind}, "output_config": {"effort": "low"}}
        return Messages.parse({"messages": [HI], **fields}).request.effort

    assert (effort("adaptive"), effort("disabled")) == ("low", "none")


PICTURE = {"type": "image", "source": {"type": "base64", "data": "aGVsbG8="}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_token": 1}, "max_token: unknown field; did you mean max_tokens?"),
    ({"max_tokens": 0}, "max_tokens:"),
    ({"max_tokens": "many"}, "max_tokens:"),
    ({"temperature": 1.5}, "temperature: must be at most 1"),
    ({"system": 1}, "system:"),
    ({"system": [{"type": "image"}]}, "system.0.type:"),
    ({"stop_sequences": [""]}, "stop_sequences:"),
    ({"stop_sequences": ["a"] * 129}, "stop_sequences: must have at most 128 items"),
    ({"container": "c"}, "container:"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers:"),
    ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools.0.type: web_search_20250305 is a tool of"),
    ({"tools": [{"type": {}, "name": "a", "input_schema": {}}]}, "tools.0.type: must be 'custom'"),
    ({"tools": [{"name": "a"}]}, "tools.0.input_schema: is required"),
    ({"tools": [{"name": "a<b", "input_schema": {}}]}, "tools.0.name:"),
    ({"tools": [PAINT, {"name": "a", "input_schema": {"x": float("nan")}}]}, "tools.1.input_schema:"),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type: any needs tools"),
    ({"tools": [PAINT], "tool_choice": {"type": "tool"}}, "tool_choice.name: is required"),
    ({"tools": [PAINT], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: there is no function x"),
    ({"tools": [PAINT], "tool_choice": {"type": "tool", "name": "\ud83d"}}, "tool_choice.name:"),
    ({"tools": [PAINT], "tool_choice": {"type": "tool", "name": "a<b"}}, "tool_choice"),
    ({"thinking": {"type": "on"}}, "thinking.type:"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort:"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: is required"),
    ({"messages": []}, "messages: must not be empty"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: role must be one of user, assistant, system"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0.type:"),
    ({"messages": [HI, {"role": "user", "content": [{"type": "text"}]}]}, "messages.1.content.0.text: is required"),
    ({"messages": [HI, {"role": "user", "content": [{"text": "a"}, PICTURE]}]}, "messages.1.content.0.type:"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_has_its_path(server: Server, fields: dict[str, Any], message: str) -> None:
    assert error(post(server, {"messages": [HI], "max_tokens": 1, **fields})).startswith(message)


@pytest.mark.parametrize(
    ("block", "path"),
    [
        (PICTURE, "source.data"),
        (image("data:text/plain,x", "url"), "source.url"),
        (image("file_011", "file"), "source.file_id"),
        ({"type": "image", "source": {"type": "base64"}}, "source.data"),
        ({"type": "image", "source": {"type": "s3"}}, "source.type"),
        ({**PICTURE, "transformations": {"oversized_image": "error"}}, "transformations.oversized_image"),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A"}},
            "source.data",
        ),
        ({"type": "document", "source": {"type": "file", "file_id": "file_011"}}, "source.file_id"),
        ({"type": "document", "source": {"type": "content", "content": [PICTURE]}}, "source.content.0.source.data"),
        ({"type": "tool_result", "tool_use_id": "t", "content": [*texts("a"), PICTURE]}, "content.1.source.data"),
        ({"type": "tool_result", "content": [PICTURE], "is_error": True}, "content.0.source.data"),
        ({"type": "tool_result", "is_error": 0}, "is_error"),
    ],
)
def test_wrong_blocks_have_their_path(server: Server, block: dict[str, Any], path: str) -> None:
    """Also where one message of the body becomes several."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
    messages = [HI, {"role": "user", "content": [*texts("a"), result, block]}]
    body = {"messages": messages, "max_tokens": 1, "system": "Be brief."}
    assert error(post(server, body)).startswith(f"messages.1.content.2.{path}: ")


def test_paths_behind_a_thought(server: Server) -> None:
    answer = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, *texts("a"), PICTURE]}
    assert error(post(server, {"messages": [HI, answer, HI]})).startswith("messages.1.content.2.source.data: ")


def test_an_unknown_handle(server: Server) -> None:
    reply = post(server, {"messages": [{"role": "user", "content": [image("sha256:" + "0" * 64, "file")]}]})
    assert error(reply, 404).startswith("messages.0.content.0.source.file_id: ")
    assert reply.json()["error"]["type"] == "not_found_error"


def test_schemas_are_named_as_sent(server: Server) -> None:
    lost = {**PAINT["input_schema"], "not": {"const": 1}}
    form, tool = {"type": "json_schema", "schema": lost}, {"name": "a", "input_schema": lost}
    for fields, path in (
        ({"output_config": {"format": form}}, "output_config.format.schema.not"),
        ({"output_format": form}, "output_format.schema.not"),
        ({"tools": [PAINT, tool], "tool_choice": {"type": "tool", "name": "a"}}, "tools.1.input_schema.not"),
    ):
        assert ask(server, HI, **fields)["not_enforced"] == [path]
        reply = post(server, {"messages": [HI], "max_tokens": 60, "stream": True, **fields})
        end = [json.loads(data) for name, data in events(reply.text) if name == "message_delta"]
        assert [event["not_enforced"] for event in end] == [[path]]
    strict = {"messages": [HI], "tools": [{**tool, "strict": True}]}
    assert error(post(server, strict)).startswith("tools.0.input_schema")


# ---- streams


USAGE = Usage(
    prompt_tokens=9,
    completion_tokens=4,
    total_tokens=13,
    prompt_tokens_details=PromptTokensDetails(cached_tokens=3),
    completion_tokens_details=CompletionTokensDetails(reasoning_tokens=2),
)


def chunk(delta: Delta | None = None, **fields: Any) -> ChatCompletionChunk:
    choices = [] if delta is None else [ChunkChoice(index=0, delta=delta, **fields)]
    more = fields if delta is None else {}
    return ChatCompletionChunk(id="chatcmpl-1", created=0, model="m", choices=choices, **more)


def call(name: str | None, arguments: str, index: int = 0) -> Delta:
    function = FunctionDelta(name=name, arguments=arguments)
    own_id = None if name is None else f"call_{name}"
    return Delta(content=None, tool_calls=[ToolCallDelta(index=index, id=own_id, function=function)])


def chunks() -> list[ChatCompletionChunk]:
    """An answer with a thought, a text and two calls, of which the second is cut."""
    return [
        chunk(Delta(role="assistant")).with_prompt(USAGE),
        chunk(Delta(reasoning_content="Hm")),
        chunk(Delta(reasoning_content=".")),
        chunk(Delta(content="Let ")),
        chunk(Delta(content="me.")),
        chunk(call("a", '{"x"')),
        chunk(call(None, ": 1}")),
        chunk(call("b", '{"y": "no', 1)),
        chunk(Delta(), finish_reason="length"),
        chunk(usage=USAGE, timings=Timings()),
    ]


@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_blocks_of_every_kind(display: str) -> None:
    thinking = {"type": "adaptive", "display": display}
    exchange = Messages.parse({"messages": [HI], "max_tokens": 4, "thinking": thinking})
    whole = json.loads(exchange.whole(fold(chunks())))
    thought = whole["content"][0]
    assert thought["thinking"] == ("Hm." if display == "summarized" else "")
    again = chat_messages(HI, {"role": "assistant", "content": [thought, *texts("Hello.")]})
    assert again[1]["reasoning_content"] == "Hm."
    assert whole["content"] == [
        {"type": "thinking", "thinking": thought["thinking"], "signature": thought["signature"]},
        {"type": "text", "text": "Let me."},
        {"type": "tool_use", "id": "toolu_a", "name": "a", "input": {"x": 1}},
        {"type": "tool_use", "id": "toolu_b", "name": "b", "input": {"y": "no"}},
    ]
    assert whole["stop_reason"] == "max_tokens"
    assert whole["usage"] == {
        "input_tokens": 6,
        "output_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 2},
    }
    stream = b"".join(exchange.events(iter(chunks()))).decode()  # type: ignore[arg-type]
    sent = [json.loads(data) for _, data in events(stream)]
    kinds = [event.get("delta", event.get("content_block", {})).get("type", event["type"]) for event in sent]
    deltas = ["thinking_delta", "thinking_delta"] if display == "summarized" else []
    assert kinds == [
        *["message_start", "thinking", *deltas, "signature_delta", "content_block_stop"],
        *["text", "text_delta", "text_delta", "content_block_stop"],
        *["tool_use", "input_json_delta", "input_json_delta", "content_block_stop"],
        *["tool_use", "input_json_delta", "content_block_stop", "message_delta", "message_stop"],
    ]
    assert sent[0]["message"]["usage"] == sent[-2]["usage"] == whole["usage"]
    signatures = [event["delta"]["signature"] for event in sent if event.get("delta", {}).get("signature")]
    assert signatures == [thought["signature"]]
    assert [event["index"] for event in sent if event["type"] == "content_block_start"] == [0, 1, 2, 3]


def test_a_full_context_is_named() -> None:
    exchange = Messages.parse({"messages": [HI], "max_tokens": 5})
    assert json.loads(exchange.whole(fold(chunks())))["stop_reason"] == "model_context_window_exceeded"


def test_a_stream_that_waits_or_fails() -> None:
    exchange = Messages.parse({"messages": [HI], "stream": True})
    assert [*events(exchange.waiting("queued").decode())] == [("ping", '{"type": "ping"}')]
    [(name, data)] = events(exchange.failure(HTTPError(503, "the server is shutting down")).decode())
    assert name == "error"
    assert Anthropic().error(json.loads(data)) == "the server is shutting down"
    assert json.loads(data)["error"]["type"] == "overloaded_error"


def test_half_a_surrogate_is_refused_everywhere() -> None:
    for body in (
        {"messages": [{"role": "user", "content": "\ud83d"}]},
        {"messages": [HI], "system": texts("\ud83d")},
        {"messages": [HI], "stop_sequences": ["\ud83d"]},
        {"messages": [HI], "tools": [{**PAINT, "description": "\ud83d"}]},
    ):
        with pytest.raises(RequestError, match="surrogate"):
            Messages.parse(body)


# ---- clients


def test_what_claude_code_sends(server: Server, sample_uri: str) -> None:
    """The body of a turn as Claude Code 2 writes it, by requests that were recorded and published."""
    cached = {"type": "ephemeral", "ttl": "1h"}
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False}
    read = {
        "name": "Read",
        "description": "Reads a file.",
        "input_schema": {
            **schema,
            "type": "object",
            "properties": {"file_path": {"type": "string", "description": "The path"}, "limit": {"type": "number"}},
            "required": ["file_path"],
        },
    }
    bash = {**read, "name": "Bash", "eager_input_streaming": True, "cache_control": cached}
    use = {"type": "tool_use", "id": "toolu_01D7", "name": "Read", "input": {"file_path": "/a.png"}, "caller": None}
    result = {"type": "tool_result", "tool_use_id": "toolu_01D7", "content": [image(sample_uri)]}
    body: dict[str, Any] = {
        "model": "claude-opus-5-5",
        "messages": [
            {"role": "user", "content": "<available-deferred-tools>\nWebFetch\n</available-deferred-tools>"},
            {"role": "user", "content": texts("<system-reminder>\nThe date.\n</system-reminder>", "Look at /a.png")},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "Eq"}, use]},
            {"role": "user", "content": [result, {**texts(COUNT)[0], "cache_control": cached}]},
        ],
        "system": [
            *texts(BILLING % "251fe", "You are an agent."),
            {**texts("Be brief.")[0], "cache_control": {**cached, "scope": "global"}},
        ],
        "tools": [read, bash],
        "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "diagnostics": {"previous_message_id": None},
        "safeguards": [{"type": "dangerous_tool_use"}],
        "temperature": 1,
        "stream": True,
    }
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "authorization": "Bearer none",
        "x-app": "cli",
    }
    reply = post(server, {**body, "temperature": 0}, "/v1/messages?beta=true", headers=headers)
    assert (reply.status_code, reply.headers["content-type"][:17]) == (200, "text/event-stream"), reply.text
    said = Anthropic().read_stream(reply.text)
    assert said.text == TWO
    counted = {name: body[name] for name in ("model", "messages", "system", "tools", "thinking")}
    tokens = post(server, counted, "/v1/messages/count_tokens?beta=true", headers=headers).json()["input_tokens"]
    later = [*texts(BILLING % "other"), *body["system"][1:]]
    again = post(server, {**body, "system": later}, "/v1/messages?beta=true", headers=headers)
    start = next(data for name, data in events(again.text) if name == "message_start")
    usage = json.loads(start)["message"]["usage"]
    assert usage["cache_read_input_tokens"] >= tokens - 2  # the line that changes is not in the prompt
    search = {"messages": [HI], "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]}
    assert "web_search_20250305" in error(post(server, {**body, **search}, "/v1/messages?beta=true"))


def test_the_models_as_anthropics_clients_read_them(server: Server) -> None:
    listed = server.get("/v1/models").json()
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "iota", "iota")
    for card in (listed["data"][0], server.get("/v1/models/iota").json()):
        assert (card["type"], card["object"], card["display_name"]) == ("model", "model", "iota")
        assert card["created_at"].endswith("Z")


def test_routes_that_are_not_there(server: Server) -> None:
    for base in (server.base, server.url):
        error(requests.get(f"{base}/messages", timeout=60), 405)
        error(requests.get(f"{base}/messages/count_tokens", timeout=60), 405)
        assert error(requests.post(f"{base}/messages/batches", timeout=60), 404)
    refused(requests.get(f"{server.base}/messages2", timeout=60), 404)
