"""How requests of Ollama's API become the one request: durations, names, pictures, ids of calls. Nothing is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from pocketvlm.errors import RequestError
from pocketvlm.messages import ImagePart, TextPart
from pocketvlm.messages.field_errors import validated
from pocketvlm.server.protocols.ollama.call_ids import with_call_ids
from pocketvlm.server.protocols.ollama.durations import seconds
from pocketvlm.server.protocols.ollama.names import canonical, listed
from pocketvlm.server.protocols.ollama.request import ChatBody, GenerateBody


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (0, 0),
        ("0", 0),
        (300, 300),
        ("300", 300),
        (1.5, 1.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("300ms", 0.3),
        ("250us", 0.00025),
        (-1, -1),
        ("-1", -1),
        ("-5m", -1),
        (10**12, -1),
        (10**400, -1),
        ("900000000h", -1),
    ],
)
def test_durations(value: object, expected: float | None) -> None:
    assert seconds(value) == pytest.approx(expected)


@pytest.mark.parametrize("value", ["", "m", "5x", "5 m", "1e5", "9" * 20, True, [], float("nan"), float("inf"), "--1"])
def test_what_is_not_a_duration(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(value)


def test_names() -> None:
    same = ["iota", "IOTA", "iota:latest", "Iota:Latest", "library/iota", "registry.ollama.ai/library/iota:latest"]
    assert {canonical(name) for name in same} == {"iota"}
    assert len({canonical(name) for name in ("iota", "iota:8b", "me/iota", "iota2")}) == 4
    assert listed("iota") == "iota:latest"
    assert listed("host:5000/me/iota") == "host:5000/me/iota:latest"
    assert listed("qwen:7b") == "qwen:7b"


def content(*images: str, text: str | None) -> list[str]:
    """The parts of a message's content: texts, and the base64 of pictures in angle brackets."""
    message = {"role": "User", "content": text, "images": list(images)}
    request, _ = validated(ChatBody, {"messages": [message]}).read("m")
    [user] = request.messages
    assert user.role == "user"
    parts = [user.content] if isinstance(user.content, str) else user.content or ()
    texts = []
    for part in parts:
        assert isinstance(part, str | TextPart | ImagePart)
        text = part if isinstance(part, str) else f"<{part.base64}>" if isinstance(part, ImagePart) else part.text
        texts.append(text)
    return texts


def test_where_pictures_stand() -> None:
    """As Ollama places them: at the marks, those that are left before the text."""
    assert content("a", "b", text="What?") == ["<a>", "<b>", "What?"]
    assert content("a", "b", text="One [img] and [img].") == ["One ", "<a>", " and ", "<b>", "."]
    assert content("a", "b", "c", text="One [img].") == ["<b>", "<c>", "One ", "<a>", "."]
    assert content("a", text="[img] and [img]") == ["<a>", " and [img]"]
    assert content("a", text=None) == ["<a>"]
    assert content(text="a [img]") == ["a [img]"]


def test_paths_of_pictures() -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "a [img] b", "images": ["p", "q"]}]
    }
    _, paths = validated(ChatBody, body).read(None)
    assert paths["messages.1.content.0.data"] == "messages.1.images.1"
    assert paths["messages.1.content.1.text"] == "messages.1.content"
    assert paths["messages.1.content.2.data"] == "messages.1.images.0"
    _, paths = validated(GenerateBody, {"prompt": "a", "images": ["p"], "system": "s"}).read(None)
    assert paths["messages.1.content.0.data"] == "images.0"
    assert paths["messages.1.content.1.text"] == "prompt"
    assert paths["messages.0.content"] == "system"


def test_options() -> None:
    options = {
        "num_predict": 7.0,
        "temperature": 0.5,
        "seed": -1,
        "top_k": 5,
        "repeat_penalty": None,
        "stop": [str(number) for number in range(20)] + [""],
        "num_ctx": 1,
        "mirostat": 2,
    }
    request, _ = validated(GenerateBody, {"prompt": "a", "options": options, "unknown": 1}).read("m")
    assert (request.limit, request.temperature, request.seed, request.top_k) == (7, 0.5, None, 5)
    assert request.stop == tuple(str(number) for number in range(20))
    for number in (-2, -1, 0):
        request, _ = validated(GenerateBody, {"prompt": "a", "options": {"num_predict": number}}).read("m")
        assert request.limit is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"options": {"temperature": 3}}, "options.temperature"),
        ({"options": {"num_predict": "many"}}, "options.num_predict"),
        ({"options": {"stop": "x" * 9, "top_p": 2}}, "options.top_p"),
        ({"options": {"stop": [1]}}, "options.stop"),
        ({"options": {"stop": ["a"] * 200}}, "options.stop"),
        ({"options": 5}, "options"),
        ({"stream": "yes"}, "stream"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"format": "xml"}, "format"),
        ({"format": 5}, "format"),
        ({"think": "?"}, "think"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        ({"model": 5}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "a", "images": "x"}]}, "messages.0.images"),
        ({"messages": [{"role": "user", "content": "a", "images": [5]}]}, "messages.0.images.0"),
        ({"messages": [{"role": "user", "content": "a\ud800", "images": ["a"]}]}, "messages.0.content"),
        ({"tools": [{"function": {"name": "a b"}}, {"function": {"name": "<"}}]}, "tools.1.function.name"),
    ],
)
def test_errors_name_what_the_client_sent(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        validated(ChatBody, {"messages": [{"role": "user", "content": "hi"}], **fields}).read("m")
    assert error.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "a"}, "suffix"),
        ({"template": "a"}, "template"),
        ({"raw": True, "system": "a"}, "system"),
        ({"raw": True, "context": [1]}, "context"),
        ({"images": "x"}, "images"),
        ({"images": [5]}, "images.0"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"system": "\ud800"}, "system"),
    ],
)
def test_errors_of_generate(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        validated(GenerateBody, {"prompt": "hi", **fields}).read("m")
    assert error.value.param == param


def test_ids_of_calls() -> None:
    def call(name: str, **more: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {}}, **more}

    messages = with_call_ids(
        [
            {"role": "assistant", "tool_calls": [call("a"), call("b", id="mine"), call("c")]},
            {"role": "tool", "tool_name": "c", "content": "3"},
            {"role": "tool", "content": "1"},
            {"role": "tool", "tool_name": "b", "content": "2"},
            {"role": "tool", "tool_name": "unknown", "content": "4"},
            {"role": "assistant", "tool_calls": [call("a")]},
            {"role": "tool", "content": "5"},
            {"role": "tool", "content": "6"},
            "not a message",
        ]
    )
    calls = [entry["id"] for message in messages[:-1] for entry in message.get("tool_calls", ())]
    assert calls == ["call_0", "mine", "call_1", "call_2"]
    results = [message.get("tool_call_id") for message in messages[:-1] if message["role"] == "tool"]
    assert results == ["call_1", "call_0", "mine", None, "call_2", None]
    assert messages[-1] == "not a message"
