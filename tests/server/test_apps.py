"""Request bodies of applications, with the fields that their sources write, sent as they are.

The sources: Open WebUI's backend (routers/openai.py, utils/payload.py), Home Assistant's open_router integration and
the custom integration Local OpenAI LLM, OpenCode (session/llm.ts above the AI SDK's compatible provider), Continue
(core/llm/openaiTypeConverters.ts, packages/openai-adapters).
"""

from __future__ import annotations

from typing import Any

import pytest

from server.conftest import Server

QUESTION = "How many shapes are there?"
PICTURE = "the picture's data: URI goes here"
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def seen(*keys: str, text: str = QUESTION, text_first: bool = True) -> dict[str, Any]:
    """A user's message with the picture; `keys` of image_url beside `url`."""
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": PICTURE, **dict.fromkeys(keys, "auto")}},
    ]
    return {"role": "user", "content": parts if text_first else parts[::-1]}


def function(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties][:1], **more}
    return {"type": "function", "function": {"name": name, "description": f"Calls {name}.", "parameters": schema}}


def call(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_1", "content": text}


OPEN_WEBUI: dict[str, Any] = {
    **USAGE,
    "model": "iota",
    "messages": [seen()],
    "temperature": 0.0,
    "max_tokens": 128,
    "seed": -1,
    "logit_bias": {},
    # Parameters of Ollama that the settings of a chat offer go to every server.
    "top_k": 40,
    "repeat_penalty": 1.0,
    "num_ctx": 8192,
    "num_batch": 512,
    "num_gpu": 0,
    "num_keep": 24,
    "num_thread": 2,
    "use_mmap": True,
    "use_mlock": False,
    "keep_alive": "5m",
    "think": False,
}
OPEN_WEBUI_TOOLS: dict[str, Any] = {
    **USAGE,
    "model": "iota",
    "messages": [
        {"role": "system", "content": "User Context:\nAnswer briefly."},
        seen(),
        {"role": "assistant", "content": "", "tool_calls": [call("get_time", "{}", index=0)]},
        result("12:00"),
    ],
    "tools": [
        function("get_time", {}),
        function("search_web", {"query": {"type": "string"}, "count": {"type": "integer", "default": 5}}),
    ],
    "max_tokens": 8,
}
HOME_ASSISTANT: dict[str, Any] = {
    "stream": True,
    "model": "iota",
    "user": "01JCONVERSATION",
    "messages": [{"role": "system", "content": "You are a voice assistant."}, seen()],
    "provider": {"require_parameters": True},
    "tools": [
        function(
            "HassTurnOn",
            {"name": {"type": "string"}, "domain": {"type": "array", "items": {"type": "string", "enum": ["light"]}}},
        ),
        function(
            "HassLightSet",
            {"brightness": {"type": "integer", "minimum": 0, "maximum": 100}, "color": {"type": "string"}},
        ),
    ],
    "max_tokens": 8,
}
HOME_ASSISTANT_TASK: dict[str, Any] = {
    "stream": True,
    "model": "iota",
    "temperature": 0.6,
    "parallel_tool_calls": False,
    "messages": [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call("GetLiveContext", "{}")],
            "reasoning_content": "Look.",
        },
        result('{"success": true}'),
        {"role": "tool", "tool_call_id": "injected_content", "content": "The current date and time is: `Monday`."},
        seen("detail", text_first=False),
    ],
    "chat_template_kwargs": {"enable_thinking": False},
    "metadata": {"session_id": "01JCONVERSATION"},
    "id_slot": 0,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "count_shapes",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "count": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
                    "at": {"type": ["string", "null"], "format": "time"},
                },
                "required": ["count", "at"],
            },
        },
    },
    "max_tokens": 200,
}
OPENCODE: dict[str, Any] = {
    **USAGE,
    "model": "iota",
    "max_tokens": 32000,
    "temperature": 0,
    "top_p": 1,
    "reasoning_effort": "high",
    "verbosity": "low",
    "messages": [seen(), {"role": "assistant", "content": "2"}, {"role": "user", "content": QUESTION}],
}
OPENCODE_TOOLS: dict[str, Any] = {
    **USAGE,
    "model": "iota",
    "max_tokens": 8,
    "messages": [
        {"role": "system", "content": "You are a coding agent.", "cache_control": {"type": "ephemeral"}},
        seen(),
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I read it.",
            "tool_calls": [call("read", '{"filePath":"/a"}')],
        },
        result("<file>\n00001| a\n</file>"),
    ],
    "tools": [
        function(
            "read",
            {
                "filePath": {"type": "string", "description": "The path."},
                "offset": {"type": "number", "minimum": 0, "maximum": 9007199254740991},
            },
            **{"$schema": "https://json-schema.org/draft/2020-12/schema", "additionalProperties": False},
        )
    ],
    "tool_choice": "auto",
}
CONTINUE: dict[str, Any] = {
    **USAGE,
    "model": "iota",
    "max_tokens": 4096,
    "temperature": 0,
    "messages": [seen("detail")],
    "parallel_tool_calls": False,
}
CONTINUE_TOOLS: dict[str, Any] = {
    **USAGE,
    "model": "iota",
    "max_tokens": 8,
    "messages": [
        {"role": "system", "content": "You are in agent mode."},
        seen("detail"),
        {
            "role": "assistant",
            "content": " ",
            "tool_calls": [call("builtin_read_file", '{"filepath":"a"}')],
            "reasoning_content": "",
            "reasoning_details": [{"signature": "s"}],
        },
        {"role": "tool", "content": "a", "tool_call_id": "call_1"},
    ],
    "tools": [function("builtin_read_file", {"filepath": {"type": "string"}})],
    "parallel_tool_calls": True,
}


def filled(value: Any, uri: str) -> Any:
    """The body with the picture in its place."""
    if isinstance(value, dict):
        return {key: filled(item, uri) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, uri) for item in value]
    return uri if value is PICTURE else value


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        pytest.param(OPEN_WEBUI, "2", id="Open WebUI"),
        pytest.param(OPEN_WEBUI_TOOLS, None, id="Open WebUI, tools"),
        pytest.param(HOME_ASSISTANT, None, id="Home Assistant"),
        pytest.param(HOME_ASSISTANT_TASK, None, id="Home Assistant, Local OpenAI LLM"),
        pytest.param(OPENCODE, "2", id="OpenCode"),
        pytest.param(OPENCODE_TOOLS, None, id="OpenCode, tools"),
        pytest.param(CONTINUE, "2", id="Continue"),
        pytest.param(CONTINUE_TOOLS, None, id="Continue, tools"),
    ],
)
def test_bodies_of_applications(server: Server, sample_uri: str, body: dict[str, Any], answer: str | None) -> None:
    """Answers are compared where iota knows them; with tools and system texts, which it never saw, the form alone."""
    chunks = server.stream(**{"content": "", **filled(body, sample_uri)})
    whole = [chunk for chunk in chunks if chunk["choices"]]
    assert whole[0]["choices"][0]["delta"]["role"] == "assistant"
    assert whole[-1]["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in whole)
    assert answer is None or text == answer
    if "stream_options" in body:
        assert chunks[-1]["usage"]["prompt_tokens_details"]["image_tokens"] > 0
