"""What the schema refuses, and the exact field that it names."""

from __future__ import annotations

from typing import Any

import pytest

from pocketvlm.errors import RequestError
from pocketvlm.messages import AssistantMessage, ChatRequest, ImagePart, ImageURLPart, TextPart

HELLO = [{"role": "user", "content": "hello"}]
NAN = float("nan")


def image(**url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": url}]}]


def part(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [fields]}]


@pytest.mark.parametrize(
    ("messages", "param", "says"),
    [
        ([], "messages", "not be empty"),
        (None, "messages", ""),
        ("hello", "messages", "list of messages"),
        ({"role": "user", "content": "hello"}, "messages", ""),
        (["hello"], "messages.0.role", "user"),
        ([*HELLO, {"content": "hello"}], "messages.1.role", "user"),
        ([{"role": "wizard", "content": "hello"}], "messages.0.role", "system, developer, user, assistant"),
        ([{"role": "user"}], "messages.0.content", "required"),
        ([{"role": "user", "content": 5}], "messages.0.content", "string or a list"),
        ([{"role": "user", "content": "a\ud800"}], "messages.0.content", "surrogate"),
        ([{"role": "user", "content": "a", "name": 5}], "messages.0.name", "string"),
        (part(type="text"), "messages.0.content.0.text", "required"),
        (part(type="text", text="\udfff"), "messages.0.content.0.text", "surrogate"),
        (part(type="audio", audio="a.mp3"), "messages.0.content.0.type", "text, image_url, image"),
        (part(text="hello"), "messages.0.content.0.type", "text, image_url, image"),
        (image(), "messages.0.content.1.image_url.url", "required"),
        (image(url=5), "messages.0.content.1.image_url.url", "string"),
        (image(url="a.png", detail="ultra"), "messages.0.content.1.image_url.detail", "high"),
        (
            image(url="a.png", max_image_tokens=0),
            "messages.0.content.1.image_url.max_image_tokens",
            "must be more than 0",
        ),
        (part(type="image"), "messages.0.content.0", "exactly one"),
        (part(type="image", path="a", url="b"), "messages.0.content.0", "exactly one"),
    ],
)
def test_wrong_messages_name_the_field(messages: Any, param: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest.parse(messages)
    assert caught.value.param == param
    assert says in caught.value.message
    assert str(caught.value).startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["a", 5]}, "stop.1", "string"),
        ({"temperature": NAN}, "temperature", "finite"),
        ({"temperature": float("inf")}, "temperature", "finite"),
        ({"temperature": 2.1}, "temperature", "2"),
        ({"temperature": -0.1}, "temperature", "0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_p": NAN}, "top_p", "finite"),
        ({"top_p": -0.5}, "top_p", "must be at least 0"),
        ({"min_p": 1.5}, "min_p", "1"),
        ({"top_k": -2}, "top_k", "0"),
        ({"frequency_penalty": NAN}, "frequency_penalty", "finite"),
        ({"presence_penalty": 3}, "presence_penalty", "2"),
        ({"repeat_penalty": 0}, "repeat_penalty", "must be more than 0"),
        ({"logit_bias": {"5": NAN}}, "logit_bias.5", "finite"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "100"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "integer"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs", "logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "20"),
        ({"max_tokens": 0}, "max_tokens", "must be more than 0"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"temperature": "3"}, "temperature", "must be at most 2"),
        ({"temperature": "nan"}, "temperature", "number"),
        ({"max_tokens": "1.5"}, "max_tokens", "integer"),
        ({"max_tokens": "1_0"}, "max_tokens", "integer"),
        ({"seed": -2}, "seed", "must be at least 0"),
        ({"min_tokens": -1}, "min_tokens", "must be at least 0"),
        ({"logit_bias": [5]}, "logit_bias", "object"),
        ({"metadata": {"a": [1]}}, "metadata.a", "must be a string, a number"),
        ({"metadata": {"a": NAN}}, "metadata.a", "finite"),
        ({"modalities": ["text", "audio"]}, "modalities.1", "must be 'text'"),
        ({"functions": [{"name": "f"}]}, "functions", "as tools"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages comes from the request"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "object"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "must have at most 4 items"),
        ({"tool_choice": "maybe"}, "tool_choice", "must be 'auto', 'none' or 'required'"),
        ({"reasoning_effort": "HIGH"}, "reasoning_effort", "must match ^[a-z_]{1,32}$"),
        ({"n": 0}, "n", "1"),
        ({"stream_options": {"include": True}}, "stream_options.include", "did you mean include_usage?"),
        ({"temprature": 1}, "temprature", "unknown field; did you mean temperature?"),
        ({"max_token": 1}, "max_token", "unknown field; did you mean max_tokens?"),
        ({"Tools": []}, "Tools", "did you mean tools?"),
        ({"unheard_of": 1}, "unheard_of", "unknown field"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest.parse(HELLO, **fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_null_means_the_default_everywhere() -> None:
    names = [name for name in ChatRequest.model_fields if name != "messages"]
    assert len(names) > 15
    assert ChatRequest.parse(HELLO, **dict.fromkeys(names)) == ChatRequest.parse(HELLO)


def test_what_clients_send_is_accepted() -> None:
    request = ChatRequest.parse(
        [
            {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
            {
                "role": "user",
                "name": "Ada",
                "content": [
                    {"type": "image_url", "image_url": "data:image/png;base64,AA=="},
                    {"type": "image_url", "image_url": {"url": "a.png", "detail": "low", "max_image_tokens": 64}},
                    {"type": "image", "path": "b.png"},
                    {"type": "text", "text": "what?"},
                ],
            },
            {"role": "assistant", "content": "a cat"},
        ],
        stop="\n",
        temperature=0,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=0,
        max_tokens=5,
        max_completion_tokens=7,
        user="u",
        metadata={"k": "v"},
    )
    parts = request.messages[1].content
    assert isinstance(parts, tuple)
    bare, full, local, text = parts
    assert isinstance(bare, ImageURLPart)
    assert (bare.image_url.url, bare.image_url.detail) == ("data:image/png;base64,AA==", "auto")
    assert isinstance(full, ImageURLPart)
    assert full.image_url.max_image_tokens == 64
    assert isinstance(local, ImagePart)
    assert local.path == "b.png"
    assert isinstance(text, TextPart)
    assert isinstance(request.messages[2], AssistantMessage)
    assert (request.stop, request.logit_bias, request.limit) == (("\n",), {5: -100.0}, 7)


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def test_tools_are_understood() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    streamed = {"id": "2", "index": 1, "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    request = ChatRequest.parse(
        [
            *HELLO,
            {"role": "assistant", "tool_calls": [call, streamed]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            {"role": "tool", "content": "rain", "tool_call_id": "1"},
            {"role": "tool", "content": [{"type": "text", "text": "sun"}], "tool_call_id": "2", "name": "weather"},
        ],
        tools=[tool(description="d", parameters={"type": "object"}, strict=True), tool("other")],
        tool_choice={"function": {"name": "other"}},
        tool_prompt="p",
        parallel_tool_calls=False,
        reasoning_effort="minimal",
    )
    answer = request.messages[1]
    assert isinstance(answer, AssistantMessage)
    assert answer.tool_calls
    assert answer.tool_calls[0].function.arguments == '{"city": "Ulm"}'
    assert answer.tool_calls[1].function.arguments == {"city": "Ulm"}
    for choice in ("auto", "none", "required", {"type": "function", "function": {"name": "weather"}}):
        ChatRequest.parse(HELLO, tools=[tool()], tool_choice=choice)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_object", "value": {"type": "object"}},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "#/$defs/a"}, "strict": True}},
    ],
)
def test_response_formats_are_understood(form: dict[str, Any]) -> None:
    request = ChatRequest.parse(HELLO, response_format=form)
    assert request.response_format
    assert request.response_format.model_dump(by_alias=True, exclude_unset=True) == form


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools.0.type", "must be 'function'"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "must be 'function'"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "required"),
        ({"tools": [tool("")]}, "tools.0.function.name", "match"),
        ({"tools": [tool('a"b')]}, "tools.0.function.name", "match"),
        ({"tools": [tool("a\nb")]}, "tools.0.function.name", "match"),
        ({"tools": [tool("<|im_end|>")]}, "tools.0.function.name", "match"),
        ({"tools": [tool("a" * 257)]}, "tools.0.function.name", "match"),
        ({"tools": [tool(parameter={})]}, "tools.0.function", "did you mean parameters?"),
        ({"tools": [tool(parameters=[])]}, "tools.0.function.parameters", "object"),
        ({"tools": [tool(parameters={"minimum": NAN})]}, "tools.0.function.parameters", "finite"),
        ({"tools": [tool(parameters={"\ud800": 1})]}, "tools.0.function.parameters", "surrogate"),
        ({"tools": [tool()], "tool_choice": 5}, "tool_choice", "auto, none, required or a function"),
        ({"tools": [tool()], "tool_choice": "maybe"}, "tool_choice", "auto"),
        ({"tools": [tool()], "tool_choice": {"function": {"name": "g"}}}, "tool_choice", "no function g"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"response_format": {}}, "response_format.type", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
            "required",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"type": "object", "properties": {}}}},
            "response_format.json_schema.schema",
            "required",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"response_format": {"type": "json_object", "shema": {}}}, "response_format.shema", "did you mean schema?"),
        ({"response_format": {"type": "json_object", "value": "{}"}}, "response_format.value", "object"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
    ],
)
def test_wrong_tools_and_formats_are_named(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest.parse(HELLO, **fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_json_is_only_so_deep() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="at most 64 levels"):
        ChatRequest.parse(HELLO, response_format={"type": "json_object", "value": deep})


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant"}, "messages.0"),
        ({"role": "assistant", "tool_calls": []}, "messages.0.tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages.0.tool_calls.0.function"),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"arguments": "{}"}}]},
            "messages.0.tool_calls.0.function.name",
        ),
        ({"role": "tool", "content": "a", "tool_call_id": 1}, "messages.0.tool_call_id"),
    ],
)
def test_wrong_tool_messages(message: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest.parse([message])
    assert caught.value.param == param


def test_values_do_not_change_after_validation() -> None:
    request = ChatRequest.parse(HELLO)
    with pytest.raises(ValueError, match="frozen"):
        request.temperature = 1.0  # type: ignore[misc]
