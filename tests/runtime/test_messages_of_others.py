"""Messages, parts, tools and fields as other clients and servers write them."""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from PIL import Image

from pocketvlm.errors import RequestError
from pocketvlm.messages import (
    AssistantMessage,
    ChatRequest,
    ImagePart,
    ImageURLPart,
    ResponseFunction,
    ResponseMessage,
    ResponseToolCall,
    Tool,
)
from pocketvlm.messages.parts import source_path
from pocketvlm.messages.tools import names_in, requires_call
from pocketvlm.pictures.images import read_picture
from pocketvlm.structured.compile import compile_request
from pocketvlm.structured.output_parser import OutputPiece
from pocketvlm.structured.tool_call_format import HERMES, ToolCallFormat, detect_tool_call_format
from pocketvlm.templates.prompt import ChatTemplate, ImageSpan, TextSpan
from runtime.templates import TEMPLATES

HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


VALIDATOR = jsonschema.Draft202012Validator(ChatRequest.model_json_schema())


@pytest.fixture(autouse=True)
def public_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is accepted here is also valid by the public JSON schema."""
    parse = ChatRequest.parse_object

    def parse_and_compare(body: dict[str, Any]) -> ChatRequest:
        request = parse(body)
        if not isinstance(body["messages"][-1], ResponseMessage):
            VALIDATOR.validate(json.loads(json.dumps(body)))
        return request

    monkeypatch.setattr(ChatRequest, "parse_object", parse_and_compare)


def red() -> str:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


BASE64 = red()
URI = f"data:image/png;base64,{BASE64}"


def read(message: dict[str, Any]) -> Any:
    """The message as the schema has it, between others."""
    return ChatRequest.parse([*HI, message, *HI]).messages[1]


def said(content: Any, **fields: Any) -> Any:
    return read({"role": "assistant", "content": content, **fields})


# ---- null, missing and unknown


@pytest.mark.parametrize("role", ["user", "system", "developer", "assistant", "tool", "function"])
def test_null_is_empty_in_every_role(role: str) -> None:
    assert read({"role": role, "content": None}).content == ""
    assert read({"role": role, "content": [{"type": "text", "text": None}]}).content[0].text == ""


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_content_that_is_forgotten_is_missed(role: str) -> None:
    with pytest.raises(RequestError, match=r"messages\.1\.content: is required"):
        read({"role": role})


def test_a_result_without_content_is_empty() -> None:
    assert read({"role": "tool", "tool_call_id": "1"}).content == ""


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "a", "id": "m1", "timestamp": 5, "cache_control": {"type": "ephemeral"}},
        {"role": "system", "content": [{"type": "text", "text": "a", "cache_control": {}, "annotations": []}]},
        {"role": "tool", "content": "a", "tool_call_id": "1", "is_error": True},
        {"role": "assistant", "content": "a", "refusal": None, "parsed": None, "audio": {"id": "x"}, "annotations": []},
        {"role": "assistant", "content": "a", "parsed": {"ok": True}, "provider_specific_fields": {}},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI, "name": "a", "format": "x"}}]},
    ],
)
def test_unknown_fields_are_ignored(message: dict[str, Any]) -> None:
    fields = read(message).model_dump(exclude_none=True)
    content = message["content"]
    assert fields["role"] == message["role"]
    assert fields["content"] == content or len(fields["content"]) == len(content)


@pytest.mark.parametrize("extra", [{"parsed_arguments": {"a": 1}}, {"index": 0}, {"extra_content": {"google": {}}}])
def test_calls_of_helpers_come_back(extra: dict[str, Any]) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", **extra}, **extra}
    [same] = said(None, tool_calls=[call], parsed=None).tool_calls
    assert (same.id, same.function.name, same.function.arguments) == ("1", "f", "{}")


def test_messages_may_be_other_libraries_objects() -> None:
    call = ResponseToolCall(id="1", function=ResponseFunction(name="f", arguments='{"a": 1}'))
    request = ChatRequest.parse([*HI, ResponseMessage(content=None, tool_calls=[call])])
    answer = request.messages[1]
    assert isinstance(answer, AssistantMessage)
    assert answer.tool_calls
    assert answer.tool_calls[0].function.arguments == '{"a": 1}'


# ---- earlier answers


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"content": None, "reasoning_content": "cut in the thought"}, ""),
        ({"reasoning": "no content at all"}, ""),
        ({"content": "b", "tool_calls": []}, "b"),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"content": "Sorry.", "refusal": "I cannot."}, "Sorry.\n\nI cannot."),
        ({"content": "b", "refusal": ""}, "b"),
    ],
)
def test_answers_without_text(fields: dict[str, Any], content: str) -> None:
    message = read({"role": "assistant", **fields})
    assert (message.content, message.tool_calls) == (content, None)


def test_parts_of_other_apis_are_texts() -> None:
    parts = ["a", {"type": "input_text", "text": "b"}, {"type": "output_text", "text": "c"}]
    message = said([*parts, {"type": "refusal", "refusal": "d"}])
    assert [part.text for part in message.content] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "thinking", "thinking": "well", "signature": "x"},
        {"type": "reasoning", "text": "well"},
        {"type": "reasoning", "reasoning": "well"},
    ],
)
def test_thoughts_among_the_parts(thought: dict[str, Any]) -> None:
    message = said([thought, {"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}])
    assert message.reasoning_content == "well"
    assert [part.text for part in message.content] == ["a"]


def test_the_old_form_of_calls() -> None:
    message = said(None, function_call={"name": "f", "arguments": "{}"})
    assert [call.function.name for call in message.tool_calls] == ["f"]
    result = read({"role": "function", "name": "f", "content": "ok"})
    assert (result.role, result.name, result.content) == ("tool", "f", "ok")


# ---- arguments of earlier calls


def written(template: str, arguments: Any, **fields: Any) -> str:
    """The prompt with a call that has these arguments."""
    call = {"id": "c", "type": "function", "function": {"name": "shot", "arguments": arguments, **fields}}
    made = ChatTemplate(template)
    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "ok"}]
    compiled = compile_request(ChatRequest.parse(messages), made, detect_tool_call_format(made, {}, {"<end>"}))
    return "".join(span.text for span in compiled.spans if isinstance(span, TextSpan))


PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>\n{% endfor %}"
# In the form of models that were trained on calls.
KNOWS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}<end>\n{% endfor %}"
)


@pytest.mark.parametrize("template", [PLAIN, KNOWS])
@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ("", {}),
        (" \n", {}),
        ("null", {}),
        (None, {}),
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('{"a": ', {}),
        ('{"a": 1, "city": "Ber', {"a": 1, "city": "Ber"}),
        ('{"a": [1, {"b": tr', {"a": [1, {}]}),
        ('{"a": NaN, "b": [-Infinity]}', {"a": None, "b": [None]}),
    ],
)
def test_arguments_are_written_as_an_object(template: str, arguments: Any, right: dict[str, Any]) -> None:
    prompt = written(template, arguments)
    text = prompt.partition('"arguments": ')[2].partition("</tool_call>")[0].rstrip()
    assert json.loads(text.removesuffix("}")) == right


@pytest.mark.parametrize("template", [PLAIN, KNOWS])
@pytest.mark.parametrize("arguments", ["[1]", "5", "{'a': 1}", '{"a": 1}{"b": 2}', "rm -rf", '"rm"'])
def test_what_is_no_object_stays_text(template: str, arguments: str) -> None:
    prompt = written(template, arguments)
    assert '"arguments": {}}' in prompt.replace("\n", "")
    assert arguments in prompt


def test_calls_of_custom_tools() -> None:
    call = {"id": "1", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
    [same] = said(None, tool_calls=[call]).tool_calls
    assert (same.function.name, same.function.arguments) == ("sql", {"input": "select 1"})


def test_arguments_in_hugging_faces_form() -> None:
    call = {"id": "1", "function": {"name": "f", "parameters": {"a": 1}, "description": "d"}}
    [same] = said(None, tool_calls=[call]).tool_calls
    assert same.function.arguments == {"a": 1}


@pytest.mark.parametrize("fields", [{}, {"id": None}, {"id": "1", "type": None}])
def test_calls_with_less(fields: dict[str, Any]) -> None:
    [call] = said(None, tool_calls=[{**fields, "function": {"name": "f"}}]).tool_calls
    assert (call.id, call.type, call.function.arguments) == (fields.get("id") or "", "function", "{}")


# ---- pictures

PICTURES: list[tuple[dict[str, Any], str]] = [
    ({"type": "image_url", "image_url": URI, "detail": "low"}, "image_url.url"),
    ({"type": "image_url", "image_url": {"url": URI, "format": "image/png"}, "detail": "low"}, "image_url.url"),
    ({"type": "image_url", "image_url": {"url": BASE64, "detail": "low"}}, "image_url.url"),
    ({"type": "image_url", "url": URI, "detail": "low"}, "url"),
    ({"type": "input_image", "image_url": URI, "detail": "low"}, "image_url"),
    ({"type": "input_image", "image_url": {"url": URI}, "detail": "low"}, "image_url.url"),
    ({"type": "image", "image": URI, "mediaType": "image/png", "detail": "low"}, "image"),
    ({"type": "image", "image": BASE64, "detail": "low"}, "image"),
    ({"type": "image", "image_url": URI, "detail": "low"}, "image_url"),
    ({"type": "image", "image": {"url": URI}, "detail": "low"}, "image.url"),
    ({"type": "image", "base64": BASE64, "mime_type": "image/png", "detail": "low"}, "base64"),
    ({"type": "image", "base64": URI, "url": None, "detail": "low"}, "base64"),
    ({"type": "image", "source_type": "base64", "data": BASE64, "detail": "low"}, "data"),
    ({"type": "image", "data": BASE64, "mimeType": "image/png", "detail": "low"}, "data"),
    (
        {"type": "image", "source": {"type": "base64", "media_type": "x", "data": BASE64}, "detail": "low"},
        "source.data",
    ),
    ({"type": "image", "source": {"type": "url", "url": URI}, "detail": "low"}, "source.url"),
    ({"type": "file", "file": {"file_data": URI, "filename": "a.png"}, "detail": "low"}, "file.file_data"),
    ({"type": "input_file", "file_data": URI, "detail": "low"}, "file_data"),
    ({"type": "file", "data": BASE64, "mediaType": "image/png", "detail": "low"}, "data"),
    ({"type": "image", "deep": {"er": {"x": URI}}, "detail": "low"}, "deep.er.x"),
]


@pytest.mark.parametrize(("part", "field"), PICTURES)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_pictures_in_other_spellings(part: dict[str, Any], field: str, role: str) -> None:
    [picture] = read({"role": role, "content": [part]}).content
    assert isinstance(picture, ImagePart | ImageURLPart)
    assert (picture.image_url if isinstance(picture, ImageURLPart) else picture).detail == "low"
    assert read_picture(picture, "p", local=False).pixels.tolist() == [[[255, 0, 0]] * 3] * 2
    assert source_path(picture, "messages.1.content.0") == f"messages.1.content.0.{field}"


def test_a_picture_in_another_spelling_that_is_none() -> None:
    [picture] = read({"role": "user", "content": [{"type": "file", "file": {"file_data": "data:,%PDF"}}]}).content
    with pytest.raises(RequestError, match=r"^p\.file\.file_data: data: URI: is not a picture"):
        read_picture(picture, "p", local=False)


@pytest.mark.parametrize("content", ["look", [{"type": "text", "text": "look"}], None])
def test_pictures_next_to_the_content(content: Any) -> None:
    message = read({"role": "user", "content": content, "images": [BASE64, URI]})
    *pictures, text = message.content if content else (*message.content, None)
    assert [read_picture(picture, "p").size for picture in pictures] == [(3, 2)] * 2
    assert source_path(pictures[1], "messages.1.content.1") == "messages.1.images.1"
    assert text is None or text.text == "look"
    assert read({"role": "user", "content": "look", "images": None}).content == "look"


@pytest.mark.parametrize(("detail", "means"), [("original", "high"), ("", "auto"), (None, "auto"), ("low", "low")])
def test_details(detail: Any, means: str) -> None:
    [own, other] = read(
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": URI, "detail": detail, "max_image_tokens": -1}},
                {"type": "input_image", "image_url": URI, "detail": detail},
            ],
        }
    ).content
    assert own.image_url.detail == other.detail == means
    assert own.image_url.max_image_tokens is None


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "input_image", "file_id": "file-1"}, "file_id names a file of another service"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id names a file of another service"),
        ({"type": "image"}, "exactly one of url"),
        ({"type": "image_url"}, "image_url: is required"),
        ({"type": "image", "base64": 5}, "base64: must be a string"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "type must be one of text, image_url, image"),
        ({"image_url": {"url": URI}}, "type must be one of"),
        ({"type": ["image"]}, "type must be one of"),
        (None, "type must be one of"),
    ],
)
def test_parts_that_are_refused(part: Any, says: str) -> None:
    with pytest.raises(RequestError, match=r"^messages\.1\.content\.0") as caught:
        read({"role": "user", "content": [part]})
    assert says in str(caught.value)


# ---- pictures of other roles, where a template describes neither calls nor results


def test_pictures_of_results_stay_with_them() -> None:
    call = {"id": "c1", "function": {"name": "shot", "arguments": "{}"}}
    picture = {"type": "image_url", "image_url": URI}
    messages = [
        {"role": "user", "content": [picture, "What?"]},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "c1", "content": [picture, "one"]},
        {"role": "tool", "tool_call_id": "c2", "content": ["two", picture]},
    ]
    spans = compile_request(ChatRequest.parse(messages), ChatTemplate(PLAIN)).spans
    shown = "".join(span.text if isinstance(span, TextSpan) else f"[{span.index}]" for span in spans)
    results = "<tool_response>\n[1]one\n</tool_response>\n<tool_response>\ntwo[2]\n</tool_response>"
    assert shown.startswith("user: [0]What?<end>\nassistant: ")
    assert shown.endswith(f"user: {results}<end>\n")
    assert sum(isinstance(span, ImageSpan) for span in spans) == 3


# ---- numbers and defaults


@pytest.mark.parametrize(
    ("name", "value", "means"),
    [
        ("temperature", "0.7", 0.7),
        ("temperature", "1e-1", 0.1),
        ("top_p", 0, 0.0),
        ("max_tokens", 5.0, 5),
        ("max_tokens", "5", 5),
        ("seed", "7.0", 7),
        ("max_tokens", -1, None),
        ("max_completion_tokens", "-1", None),
        ("max_tokens", -2, None),
        ("top_k", -1.0, None),
        ("seed", -1, None),
        ("logit_bias", [], None),
        ("logit_bias", {"5": "-100"}, {5: -100.0}),
        ("n", 2.0, 2),
    ],
)
def test_numbers_as_clients_write_them(name: str, value: Any, means: Any) -> None:
    assert getattr(ChatRequest.parse(HI, **{name: value}), name) == means


# ---- fields at the top


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "u"},
        {"service_tier": "auto", "modalities": ["text"], "verbosity": "low", "metadata": {"a": 1}},
        {"stream_options": {"include_obfuscation": False}, "prediction": {"type": "content", "content": "x"}},
        {"web_search_options": {}, "prompt_cache_options": {}, "audio": None, "moderation": None},
        {"functions": [], "function_call": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"logprobs": False, "top_logprobs": 0},
        {"cache_prompt": True, "id_slot": -1, "keep_alive": "5m", "priority": 0, "request_id": "r"},
        {"num_ctx": 8192, "num_batch": 512, "num_gpu": 0, "num_keep": 24, "use_mmap": True, "use_mlock": False},
        {"provider": {"require_parameters": True}, "route": "fallback", "usage": {"include": True}},
    ],
)
def test_fields_that_change_nothing_are_taken(fields: dict[str, Any]) -> None:
    ChatRequest.parse(HI, **fields)


def test_fields_of_other_runtimes() -> None:
    assert ChatRequest.parse(HI, repetition_penalty=1.1).repetition == 1.1
    assert ChatRequest.parse(HI, repetition_penalty=1.1, repeat_penalty=1.2).repetition == 1.2
    assert ChatRequest.parse(HI).repetition is None
    assert ChatRequest.parse(HI, n_predict=5).limit == 5
    assert ChatRequest.parse(HI, n_predict=-1).limit is None
    assert ChatRequest.parse(HI, min_tokens=5.0).min_tokens == 5


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, "low"),
        ({"reasoning_effort": "high", "reasoning": {"effort": "low"}}, "high"),
        ({"enable_thinking": False}, "none"),
        ({"enable_thinking": True}, None),
        ({"think": False}, "none"),
        ({"think": True}, None),
        ({"think": "low"}, "low"),
        ({"reasoning": {"enabled": False}}, "none"),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, None),
    ],
)
def test_effort_in_other_spellings(fields: dict[str, Any], effort: str | None) -> None:
    assert ChatRequest.parse(HI, **fields).effort == effort


SWITCHED = (
    "{% if enable_thinking is defined and not enable_thinking %}<off>{% endif %}{{ style }}{{ messages[-1].content }}"
)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "<off>hi"),
        ({"reasoning_effort": "low"}, "hi"),
        ({"enable_thinking": True}, "hi"),
        ({"think": True}, "hi"),
        ({"reasoning": {"enabled": True}}, "hi"),
        ({"thinking": {"type": "adaptive"}}, "hi"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "hi"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "<off>hi"),
        ({"enable_thinking": False}, "<off>hi"),
        ({"think": False}, "<off>hi"),
        ({"reasoning_effort": "none"}, "<off>hi"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "hi"),
        ({"chat_template_kwargs": {"style": "<|brief|>", "unread": [1]}}, "<off><|brief|>hi"),
    ],
)
def test_variables_of_the_template(fields: dict[str, Any], prompt: str) -> None:
    spans = compile_request(ChatRequest.parse(HI, **fields), ChatTemplate(SWITCHED)).spans
    assert "".join(span.text for span in spans if isinstance(span, TextSpan)) == prompt
    special = "".join(span.text for span in spans if isinstance(span, TextSpan) and span.special)
    assert special == ("<off>" if prompt.startswith("<off>") else "")  # what a client sends is never a control token


def test_a_variable_that_breaks_the_template_is_the_requests_fault() -> None:
    request = ChatRequest.parse(HI, chat_template_kwargs={"depth": "deep"})
    with pytest.raises(RequestError, match=r"^chat_template_kwargs: "):
        compile_request(request, ChatTemplate("{{ messages[0].content }}{{ depth + 1 if depth else '' }}"))


# ---- tools and choices

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        ({"type": "function", "function": FUNCTION, "cache_control": {"type": "ephemeral"}}, "function.parameters"),
        ({"function": {**FUNCTION, "cache_control": {}}}, "function.parameters"),
        ({"type": None, "function": FUNCTION}, "function.parameters"),
        ({"type": "function", **FUNCTION}, "parameters"),
        (FUNCTION, "parameters"),
        ({"name": "f", "description": "d", "strict": True, "input_schema": {"type": "object"}}, "input_schema"),
        ({"name": "f", "description": "d", "strict": True, "inputSchema": {"type": "object"}}, "inputSchema"),
        (
            {"function": {"name": "f"}, **{key: FUNCTION[key] for key in ("description", "parameters", "strict")}},
            "parameters",
        ),
        ({"function": {**FUNCTION, "parameters": None}, "parameters": FUNCTION["parameters"]}, "parameters"),
        ({"function": {**FUNCTION, "strict": None}, "strict": True, "parameters": {}}, "function.parameters"),
    ],
)
def test_tools_in_other_forms(tool: dict[str, Any], field: str) -> None:
    [same] = ChatRequest.parse(HI, tools=[tool]).tools or ()
    assert isinstance(same, Tool)
    assert same.function.model_dump() == FUNCTION
    assert same.parameters_field == field


ODD = ["files/read", "read: all", "my tool", "prüfen", "a" * 65, "$ref", "a,b;c(d)|e*"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("template", [PLAIN, KNOWS])
def test_names_are_told_and_read_as_given(template: str, name: str) -> None:
    made = ChatTemplate(template)
    form = detect_tool_call_format(made, {}, {"<end>"})
    assert (form is None) == (template == PLAIN)
    tools = [{"function": {"name": other}} for other in (name[:1], name, name + "2")]
    compiled = compile_request(ChatRequest.parse(HI, tools=tools, tool_choice="required"), made, form)
    assert compiled.constraint
    assert json.dumps(name, ensure_ascii=False)[1:-1] in compiled.constraint.grammar.replace('\\"', '"')
    form = form or HERMES
    parser = compiled.output_parser()
    pieces = parser.push(f"{form.opening}{name}{form.middle}{{}}{form.closing}".encode()) + parser.finish()
    assert pieces == [OutputPiece("call", name), OutputPiece("arguments", "{}")]


@pytest.mark.parametrize(
    ("choice", "names", "required"),
    [
        ("any", None, True),
        ({"type": "auto"}, None, False),
        ({"type": "any"}, None, True),
        ({"type": "none"}, None, False),
        ({"type": "function", "name": "g"}, ("g",), True),
        ({"type": "tool", "name": "g"}, ("g",), True),
        ({"function": {"name": "g"}}, ("g",), True),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "g"}}]}},
            ("g",),
            False,
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}, FUNCTION]},
            ("g", "f"),
            True,
        ),
    ],
)
def test_choices_in_other_forms(choice: Any, names: tuple[str, ...] | None, required: bool) -> None:
    tools = [FUNCTION, {"function": {"name": "g"}}]
    request = ChatRequest.parse(HI, tools=tools, tool_choice=choice)
    assert names_in(request.tool_choice) == names
    assert requires_call(request.tool_choice) == required
    constraint = compile_request(request, ChatTemplate(PLAIN)).constraint
    callable_tools = "" if constraint is None else constraint.grammar.partition("\ncall: ")[2].partition("\n")[0]
    every = ("f", "g") if request.tool_choice != "none" else ()
    wanted = [f"call_{i}" for i, name in enumerate("fg") if name in (every if names is None else names)]
    assert callable_tools == " | ".join(wanted)
    assert ("FREE" in (constraint.grammar if constraint else "")) == (not required and request.tool_choice != "none")


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "h"}]}, "no function h"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "must not be empty"),
        ({"type": "allowed_tools", "mode": "maybe", "tools": [{"name": "f"}]}, "must be 'auto' or 'required'"),
        ({"type": "function", "name": "h"}, "no function h"),
        ({"type": "custom", "name": "f"}, "must be 'function'"),
        ([], "must be auto, none, required or a function"),
    ],
)
def test_choices_that_are_refused(choice: Any, says: str) -> None:
    with pytest.raises(RequestError, match=r"^tool_choice") as caught:
        ChatRequest.parse(HI, tools=[FUNCTION], tool_choice=choice)
    assert says in caught.value.message


NOT = {"type": "object", "not": {"required": ["a"]}}  # not enforced, so the schema's place is named


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"type": "json_object", "schema": NOT}, "schema"),
        ({"type": "json_object", "value": NOT}, "value"),
        ({"type": "json", "value": NOT}, "value"),
        ({"type": "json_schema", "json_schema": {"schema": NOT}}, "json_schema.schema"),
        ({"type": "json_schema", "schema": NOT}, "schema"),
        ({"type": "json_schema", "name": "n", "strict": True, "schema": NOT}, "schema"),
    ],
)
def test_response_formats_in_other_forms(form: dict[str, Any], field: str) -> None:
    request = ChatRequest.parse(HI, response_format=form)
    if form.get("strict"):
        with pytest.raises(RequestError, match=rf"^response_format\.{field}\.not: "):
            compile_request(request, ChatTemplate(PLAIN))
    else:
        assert compile_request(request, ChatTemplate(PLAIN)).not_enforced == (f"response_format.{field}.not",)


# ---- pictures in every role

# Knows calls and results, and pictures of users only.
USERS_PICTURES = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.role }}: "
    "{% if m.content is string %}{{ m.content }}{% elif m.role == 'user' %}{% for part in m.content %}"
    "{{ '<img>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}<end>\n{% endfor %}"
)
SOURCES = {**{name: source[:2] for name, source in TEMPLATES.items()}, "users": (USERS_PICTURES, "<img>")}
PICTURE = {"type": "image_url", "image_url": URI}
SHOT = [{"id": "c1", "function": {"name": "shot", "arguments": "{}"}}]
SYSTEM = {"role": "system", "content": ["Sentence", PICTURE]}
USER = {"role": "user", "content": ["Question", PICTURE]}
ANSWER = {"role": "assistant", "content": ["Answer", PICTURE]}
RESULTS = [
    {"role": "assistant", "content": None, "tool_calls": SHOT},
    {"role": "tool", "tool_call_id": "c1", "content": [PICTURE, "Result"]},
    {"role": "tool", "tool_call_id": "c1", "content": [PICTURE]},
]


@cache
def made(name: str) -> tuple[ChatTemplate, ToolCallFormat | None]:
    source, image_token = SOURCES[name]
    template = ChatTemplate(source, bos="<bos>", eos="<eos>", image_token=image_token)
    return template, detect_tool_call_format(template, {}, {"<end>"})


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM, USER],
        [SYSTEM, USER, ANSWER, USER],
        [USER, *RESULTS],
        [USER, *RESULTS, USER],
        [SYSTEM, USER, ANSWER, USER, *RESULTS, ANSWER, USER],
        [SYSTEM],
    ],
)
def test_pictures_of_every_role_are_placed_in_order(name: str, messages: list[dict[str, Any]]) -> None:
    request = ChatRequest.parse(messages, tools=[{"name": "shot"}])
    spans = compile_request(request, *made(name)).spans
    given = [part for message in messages for part in message["content"] or () if part != PICTURE]
    places = [span.index for span in spans if isinstance(span, ImageSpan)]
    assert places == list(range(str(messages).count(URI)))
    prompt = "".join(span.text for span in spans if isinstance(span, TextSpan))
    assert {text: prompt.count(text) for text in given} == {text: given.count(text) for text in given}


def test_a_result_shows_its_pictures_behind_it_where_a_template_has_them_from_users_only() -> None:
    """So the beginning of the prompt stays the same from step to step, and cached."""
    template, form = made("users")
    assert form
    spans = compile_request(ChatRequest.parse([USER, *RESULTS]), template, form).spans
    shown = "".join(span.text if isinstance(span, TextSpan) else f"[{span.index}]" for span in spans)
    assert shown.startswith("user: Question[0]<end>\n")
    assert shown.endswith("tool: Result<end>\ntool: <end>\nuser: [1][2]<end>\n")
