"""One conversation in the words of each API of the server, for test_protocols.py.

A test states an `Ask`: turns, and what the answer must be like. An `Adapter` writes it as a body of its API and reads
the answer back as `Said`. To add an API: subclass Adapter, fill in the methods, and put an instance into ADAPTERS.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

# ---- what is asked, in no API's words


@dataclass(frozen=True)
class Picture:
    """A picture in a turn. `url` is a data: URI, unless a test wants a wrong one."""

    url: str


@dataclass(frozen=True)
class Call:
    """A call of a tool, in an earlier answer or in a new one."""

    name: str
    arguments: Mapping[str, Any]
    id: str = "call_1"


@dataclass(frozen=True)
class Turn:
    """`parts` are texts and pictures. An assistant's turn may have a `thought` and `calls`.

    A turn of the role tool is the result of the call `result_of`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    parts: Sequence[str | Picture] = ()
    thought: str | None = None
    calls: Sequence[Call] = ()
    result_of: Call | None = None


@dataclass(frozen=True)
class Tool:
    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Ask:
    """`schema` is the JSON Schema of the answer. With `must_call` the answer has to call one of the tools.

    If the last turn is an assistant's, the answer continues its text.
    """

    turns: Sequence[Turn]
    max_tokens: int | None = None
    schema: Mapping[str, Any] | None = None
    tools: Sequence[Tool] = ()
    must_call: bool = False
    stream: bool = False
    model: str = "iota"

    def streamed(self) -> Ask:
        return replace(self, stream=True)


@dataclass(frozen=True)
class Said:
    """An answer. `prompt_tokens` are all of the prompt, also those that were cached."""

    text: str
    thought: str
    calls: Sequence[Call]
    reason: Literal["stop", "length", "calls"]
    prompt_tokens: int
    answer_tokens: int


def user(*parts: str | Picture) -> Turn:
    return Turn("user", parts)


def assistant(*parts: str, thought: str | None = None, calls: Sequence[Call] = ()) -> Turn:
    return Turn("assistant", parts, thought=thought, calls=calls)


# ---- how an API says it


class Adapter(ABC):
    """`path` is the route that answers. `type` is the media type of its streams.

    `open_fields` are objects in which unknown fields are ignored.
    """

    name: ClassVar[str]
    path: ClassVar[str]
    open_fields: ClassVar[tuple[str, ...]] = ()
    type: ClassVar[str] = "text/event-stream; charset=utf-8"

    @abstractmethod
    def write(self, ask: Ask) -> dict[str, Any]:
        """Return the body of a request."""

    @abstractmethod
    def read(self, answer: Mapping[str, Any]) -> Said:
        """Return what the JSON of an answer says. Check what its clients rely on."""

    @abstractmethod
    def read_stream(self, body: str) -> Said:
        """Return what the text of a whole stream says. Check the order of its events."""

    @abstractmethod
    def place(self, turn: int, part: int) -> str:
        """Return the path of a picture in what `write` makes of a conversation without calls, for errors."""

    @abstractmethod
    def error(self, body: Mapping[str, Any]) -> str:
        """Check that the body is an error in the API's own form, all of its keys, and return the message."""

    @abstractmethod
    def oddities(self) -> Mapping[str, dict[str, Any]]:
        """Return bodies by a name of what is odd: they are answered, because real clients send them."""


def events(body: str) -> Iterator[tuple[str | None, str]]:
    """Yield the name and the data of each server-sent event; comments are left out."""
    for block in body.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            assert len(fields) == len(lines) and set(fields) <= {"event", "data"}, block
            yield fields.get("event"), fields["data"]


def openai_error(body: Mapping[str, Any]) -> str:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    message: str = body["error"]["message"]
    return message


class ChatCompletions(Adapter):
    name = "chat completions"
    path = "/v1/chat/completions"

    def write(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {"model": ask.model, "messages": [self._message(turn) for turn in ask.turns]}
        if ask.max_tokens is not None:
            body["max_completion_tokens"] = ask.max_tokens
        if ask.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ask.schema}}
        if ask.tools:
            body["tools"] = [
                {"type": "function", "function": {"name": tool.name, "parameters": tool.parameters}}
                for tool in ask.tools
            ]
        if ask.must_call:
            body["tool_choice"] = "required"
        if ask.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def _message(self, turn: Turn) -> dict[str, Any]:
        parts = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": part.url}}
            for part in turn.parts
        ]
        message: dict[str, Any] = {"role": turn.role, "content": parts}
        if turn.thought is not None:
            message["reasoning_content"] = turn.thought
        if turn.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                }
                for call in turn.calls
            ]
        if turn.result_of is not None:
            message["tool_call_id"] = turn.result_of.id
        return message

    def read(self, answer: Mapping[str, Any]) -> Said:
        [choice] = answer["choices"]
        return self._said(choice["message"], choice["finish_reason"], answer["usage"])

    def read_stream(self, body: str) -> Said:
        *data, last = [data for _, data in events(body)]
        assert last == "[DONE]"
        *chunks, end = map(json.loads, data)
        assert not end["choices"]
        message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
        for chunk in chunks:
            delta = chunk["choices"][0]["delta"]
            for name in ("content", "reasoning_content"):
                message[name] += delta.get(name) or ""
            for call in delta.get("tool_calls") or ():
                if "id" in call:
                    message["tool_calls"].append(call)
                else:
                    message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        return self._said(message, chunks[-1]["choices"][0]["finish_reason"], end["usage"])

    def _said(self, message: Mapping[str, Any], reason: str, usage: Mapping[str, Any]) -> Said:
        calls = [
            Call(call["function"]["name"], json.loads(call["function"]["arguments"]), call["id"])
            for call in message.get("tool_calls") or ()
        ]
        reasons: dict[str, Any] = {"stop": "stop", "length": "length", "tool_calls": "calls"}
        return Said(
            message["content"] or "",
            message.get("reasoning_content") or "",
            calls,
            reasons[reason],
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )

    def place(self, turn: int, part: int) -> str:
        return f"messages.{turn}.content.{part}.image_url.url"

    def error(self, body: Mapping[str, Any]) -> str:
        return openai_error(body)

    def oddities(self) -> Mapping[str, dict[str, Any]]:
        hi = {"role": "user", "content": "hi"}
        return {
            "null content": {
                "messages": [hi, {"role": "assistant", "content": None}, {"role": "user", "content": None}]
            },
            "null fields": {"messages": [hi], "temperature": None, "tools": None, "stop": None, "stream": None},
        }


class Responses(Adapter):
    name = "responses"
    path = "/v1/responses"

    def write(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {"model": ask.model, "input": [item for turn in ask.turns for item in self._items(turn)]}
        if ask.max_tokens is not None:
            body["max_output_tokens"] = ask.max_tokens
        if ask.schema is not None:
            body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": ask.schema}}
        if ask.tools:
            body["tools"] = [
                {"type": "function", "name": tool.name, "parameters": tool.parameters} for tool in ask.tools
            ]
        if ask.must_call:
            body["tool_choice"] = "required"
        if ask.stream:
            body["stream"] = True
        return body

    def _items(self, turn: Turn) -> Iterator[dict[str, Any]]:
        text = "output_text" if turn.role == "assistant" else "input_text"
        parts = [
            {"type": text, "text": part} if isinstance(part, str) else {"type": "input_image", "image_url": part.url}
            for part in turn.parts
        ]
        if turn.thought is not None:
            content = [{"type": "reasoning_text", "text": turn.thought}]
            yield {"type": "reasoning", "id": "rs_1", "summary": [], "content": content}
        if turn.result_of is not None:
            yield {"type": "function_call_output", "call_id": turn.result_of.id, "output": parts}
        elif parts:
            yield {"role": turn.role, "content": parts}
        for call in turn.calls:
            arguments = json.dumps(call.arguments)
            yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments}

    def read(self, answer: Mapping[str, Any]) -> Said:
        assert (answer["object"], answer["error"]) == ("response", None)
        text, thought = "", ""
        calls = []
        for item in answer["output"]:
            match item["type"]:
                case "message":
                    text += "".join(part["text"] for part in item["content"])
                case "reasoning":
                    thought += "".join(part["text"] for part in item["content"])
                case "function_call":
                    calls.append(Call(item["name"], json.loads(item["arguments"]), item["call_id"]))
        if answer["status"] == "incomplete":
            assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
        else:
            assert (answer["status"], answer["incomplete_details"]) == ("completed", None)
        reason: Any = "length" if answer["status"] == "incomplete" else "calls" if calls else "stop"
        usage = answer["usage"]
        return Said(text, thought, calls, reason, usage["input_tokens"], usage["output_tokens"])

    def read_stream(self, body: str) -> Said:
        said = [(name, json.loads(data)) for name, data in events(body)]
        assert [name for name, _ in said] == [data["type"] for _, data in said]
        assert [data["sequence_number"] for _, data in said] == list(range(len(said)))
        assert [name for name, _ in said[:2]] == ["response.created", "response.in_progress"]
        texts: dict[tuple[int, str], str] = {}
        for name, data in said:
            kind = str(name).rpartition(".")[0]
            if str(name).endswith(".delta"):
                texts[data["output_index"], kind] = texts.get((data["output_index"], kind), "") + data["delta"]
            elif kind in ("response.output_text", "response.function_call_arguments"):
                whole = data["text" if kind == "response.output_text" else "arguments"]
                assert texts.get((data["output_index"], kind), "") == whole
        last = said[-1][1]["response"]
        done = [data["item"] for name, data in said if name == "response.output_item.done"]
        assert last["output"] == done
        return self.read(last)

    def place(self, turn: int, part: int) -> str:
        return f"input.{turn}.content.{part}.image_url"

    def error(self, body: Mapping[str, Any]) -> str:
        return openai_error(body)

    def oddities(self) -> Mapping[str, dict[str, Any]]:
        hi = {"role": "user", "content": "hi"}
        return {
            "null content": {"input": [hi, {"role": "assistant", "content": None}, {"role": "user", "content": None}]},
            "null fields": {"input": "hi", "temperature": None, "tools": None, "text": None, "reasoning": None},
            "null result": {"input": [hi, {"type": "function_call_output", "call_id": "c", "output": None}]},
        }


class Anthropic(Adapter):
    name = "anthropic"
    path = "/v1/messages"
    open_fields = ("output_config",)

    def write(self, ask: Ask) -> dict[str, Any]:
        first, *others = ask.turns
        turns = others if first.role == "system" else ask.turns
        body: dict[str, Any] = {"model": ask.model, "messages": [self._message(turn) for turn in turns]}
        if first.role == "system":
            body["system"] = self._blocks(first)
        if ask.max_tokens is not None:
            body["max_tokens"] = ask.max_tokens
        if ask.schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": ask.schema}}
        if ask.tools:
            body["tools"] = [{"name": tool.name, "input_schema": tool.parameters} for tool in ask.tools]
        if ask.must_call:
            body["tool_choice"] = {"type": "any"}
        if ask.stream:
            body["stream"] = True
        return body

    def _message(self, turn: Turn) -> dict[str, Any]:
        blocks = self._blocks(turn)
        if turn.result_of is not None:
            result = {"type": "tool_result", "tool_use_id": turn.result_of.id, "content": blocks}
            return {"role": "user", "content": [result]}
        if turn.thought is not None:
            blocks.insert(0, {"type": "thinking", "thinking": turn.thought, "signature": "s"})
        for call in turn.calls:
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})
        return {"role": turn.role, "content": blocks}

    def _blocks(self, turn: Turn) -> list[dict[str, Any]]:
        return [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "source": {"type": "url", "url": part.url}}
            for part in turn.parts
        ]

    def read(self, answer: Mapping[str, Any]) -> Said:
        assert (answer["type"], answer["role"], answer["id"][:4]) == ("message", "assistant", "msg_")
        assert {"thinking", "text", "tool_use"} >= {block["type"] for block in answer["content"]}
        texts = [block["text"] for block in answer["content"] if block["type"] == "text"]
        thoughts = [block["thinking"] for block in answer["content"] if block["type"] == "thinking"]
        calls = [
            Call(block["name"], block["input"], block["id"])
            for block in answer["content"]
            if block["type"] == "tool_use"
        ]
        reasons: dict[str, Any] = {"end_turn": "stop", "max_tokens": "length", "tool_use": "calls"}
        usage = answer["usage"]
        prompt = sum(usage[f"{name}input_tokens"] for name in ("", "cache_creation_", "cache_read_"))
        reason = reasons[answer["stop_reason"]]
        return Said("".join(texts), "".join(thoughts), calls, reason, prompt, usage["output_tokens"])

    def read_stream(self, body: str) -> Said:
        said = [(name, json.loads(data)) for name, data in events(body)]
        assert [name for name, _ in said] == [data["type"] for _, data in said]
        said = [(name, data) for name, data in said if name != "ping"]
        assert [name for name, _ in said[-2:]] == ["message_delta", "message_stop"]
        message: dict[str, Any] = said[0][1]["message"]
        assert (said[0][0], message["content"], message["stop_reason"]) == ("message_start", [], None)
        is_open = False
        for name, data in said[1:-2]:
            assert is_open == (name != "content_block_start")
            is_open = name != "content_block_stop"
            if name == "content_block_start":
                message["content"].append({**data["content_block"], "json": ""})
            assert data["index"] == len(message["content"]) - 1
            if name == "content_block_delta":
                [key] = data["delta"].keys() - {"type"}
                own = {"partial_json": "json"}.get(key, key)
                message["content"][-1][own] += data["delta"][key]
        for block in message["content"]:
            if block["type"] == "tool_use":
                assert block["input"] == {}
                block["input"] = json.loads(block["json"])
        end = said[-2][1]
        names = [name for name in message["usage"] if "input" in name]
        assert [end["usage"][name] for name in names] == [message["usage"][name] for name in names]
        return self.read({**message, **end["delta"], "usage": end["usage"]})

    def place(self, turn: int, part: int) -> str:
        return f"messages.{turn}.content.{part}.source.url"

    def error(self, body: Mapping[str, Any]) -> str:
        assert (set(body), body["type"]) == ({"type", "error"}, "error")
        assert set(body["error"]) == {"type", "message"}
        assert body["error"]["type"].endswith("_error") or body["error"]["type"] == "request_too_large"
        message: str = body["error"]["message"]
        return message

    def oddities(self) -> Mapping[str, dict[str, Any]]:
        hi = {"role": "user", "content": "hi"}
        result = {"type": "tool_result", "tool_use_id": "t", "content": None}
        return {
            "null fields": {"messages": [hi], "temperature": None, "tools": None, "system": None, "thinking": None},
            "null result": {"messages": [hi, {"role": "user", "content": [result]}]},
            "an answer without blocks": {"messages": [hi, {"role": "assistant", "content": []}, hi]},
            "fields of new betas": {"messages": [hi], "safeguards": [{"type": "x"}], "fallbacks": []},
        }


ADAPTERS: tuple[Adapter, ...] = (ChatCompletions(), Responses(), Anthropic())
