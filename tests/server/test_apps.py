"""Request bodies of applications, with the fields that their sources write, sent as they are.

The sources: Open WebUI's backend (routers/openai.py, utils/payload.py), Home Assistant's open_router integration and
the custom integration Local OpenAI LLM, OpenCode (session/llm.ts above the AI SDK's compatible provider), Continue
(core/llm/openaiTypeConverters.ts, packages/openai-adapters). Those that speak Ollama's API: Home Assistant's ollama
integration (entity.py), Frigate's genai/plugins/ollama.py, PhotoPrism's internal/ai/vision (api_request.go).
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

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


# ---- Ollama's API

BASE64 = "the picture's base64 goes here"
HOME_ASSISTANT_OLLAMA: dict[str, Any] = {
    "model": "iota:latest",
    "stream": True,
    "options": {"num_ctx": 8192, "num_predict": 8},  # it sends no limit
    "keep_alive": -1,
    "messages": [
        {"role": "system", "content": "You are a voice assistant."},
        {"role": "user", "content": "Turn on the lamp."},
        {
            "role": "assistant",
            "content": "",
            "thinking": "The lamp.",
            "tool_calls": [{"function": {"name": "HassTurnOn", "arguments": {"name": "lamp", "domain": ["light"]}}}],
        },
        {"role": "tool", "content": '{"data":{"success":[]},"error":null}'},
        {"role": "user", "content": QUESTION, "images": [BASE64]},
    ],
    "tools": [function("HassTurnOn", {"name": {"type": "string"}})],
    "think": False,
}
HOME_ASSISTANT_OLLAMA_TASK: dict[str, Any] = {
    "model": "iota:latest",
    "stream": True,
    "options": {"num_ctx": 8192},
    "keep_alive": "300s",
    "messages": [{"role": "user", "content": QUESTION, "images": [BASE64]}],
    "format": {
        "type": "object",
        "properties": {
            "count": {"type": "integer", "description": "How many", "minimum": 0, "maximum": 9},
            "round": {"type": "boolean", "nullable": True},
        },
        "required": ["count"],
    },
}
FRIGATE: dict[str, Any] = {
    "model": "iota",
    "stream": False,
    "options": {"temperature": 0, "repeat_penalty": 1.0, "presence_penalty": 0.0},
    "keep_alive": "1h",
    "messages": [{"role": "user", "content": f"[img]\n{QUESTION}", "images": [BASE64]}],
}
FRIGATE_OLDER: dict[str, Any] = {
    "model": "iota",
    "prompt": QUESTION,
    "stream": False,
    "images": [BASE64],
    "options": {"temperature": 0.0, "num_predict": 300, "repeat_penalty": 1.05},
}
PHOTOPRISM: dict[str, Any] = {
    "id": "b3f1c5d8-1f5e-4f0a-9f7e-1f0b0e6f3d11",
    "model": "iota:latest",
    "prompt": QUESTION,
    "suffix": "",
    "options": {"temperature": 0.1, "top_p": 0.9, "num_predict": 60, "stop": ["\n\n"], "num_ctx": 4096, "seed": 1},
    "stream": False,
    "images": [BASE64],
}
PHOTOPRISM_LABELS: dict[str, Any] = {
    **PHOTOPRISM,
    "system": "You are a PhotoPrism vision model. Output concise JSON that matches the schema.",
    "format": "json",
}


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        pytest.param("/api/chat", HOME_ASSISTANT_OLLAMA, None, id="Home Assistant"),
        pytest.param("/api/chat", HOME_ASSISTANT_OLLAMA_TASK, None, id="Home Assistant, AI task"),
        pytest.param("/api/chat", FRIGATE, "2", id="Frigate"),
        pytest.param("/api/generate", FRIGATE_OLDER, "2", id="Frigate, older"),
        pytest.param("/api/generate", PHOTOPRISM, "2", id="PhotoPrism"),
        pytest.param("/api/generate", PHOTOPRISM_LABELS, None, id="PhotoPrism, labels"),
    ],
)
def test_bodies_for_ollama(
    server: Server, sample_uri: str, path: str, body: dict[str, Any], answer: str | None
) -> None:
    sent = json.dumps(body).replace(BASE64, sample_uri.partition(",")[2])
    reply = requests.post(server.url + path, data=sent, timeout=60)
    assert reply.status_code == 200, reply.text
    parts = [json.loads(line) for line in reply.content.splitlines()]
    assert len(parts) > 1 if body["stream"] else len(parts) == 1
    text = "".join(part["message"]["content"] if path == "/api/chat" else part["response"] for part in parts)
    assert answer is None or text.strip() == answer
    end = parts[-1]
    assert end["done"] is True
    assert min(end["total_duration"], end["prompt_eval_count"], end["eval_count"]) > 0
    if isinstance(schema := body.get("format"), dict):
        assert set(json.loads(text)) <= set(schema["properties"])
    elif schema:
        assert text.startswith("{")
