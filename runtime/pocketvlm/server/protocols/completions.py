"""OpenAI's older completions: a prompt as it is, without a chat template, and what follows it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from pocketvlm.chat.completion import joined
from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatCompletion, ChatCompletionChunk, ChatRequest, ChoiceLogprobs, TokenLogprob
from pocketvlm.messages.ignored import IgnoredFields
from pocketvlm.messages.numbers import as_number
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.operation import Component, Operation, Stream
from pocketvlm.server.protocols.error_forms import OPENAI_ERROR
from pocketvlm.server.protocols.exchange import Chunks, Exchange, Run, event, parsed
from pocketvlm.system.suggestions import did_you_mean

_MAX_TOKENS = 16  # OpenAI's default
_MAX_PROMPTS = 64
_MAX_LOGPROBS = 20
# Fields that mean here what they mean in ChatRequest.
_SHARED = (
    *("model", "max_tokens", "n_predict", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n"),
    *("frequency_penalty", "presence_penalty", "repeat_penalty", "repetition_penalty", "logit_bias", "ignore_eos"),
    *("stream", "stream_options", "response_format", "json_whitespace", "skip_special_tokens", "user", "metadata"),
    *IgnoredFields.model_fields,
)
_OWN = ("prompt", "logprobs", "echo", "suffix", "best_of")
_TEXTS = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": _MAX_PROMPTS}
_REQUEST = Component(
    "CompletionRequest",
    {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {
            "prompt": {"anyOf": [{"type": "string", "minLength": 1}, _TEXTS]},
            "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": _MAX_LOGPROBS},
            "echo": {"enum": [False, None], "description": "an answer has the new text alone"},
            "suffix": {"enum": ["", None], "description": "not supported"},
            "best_of": {"type": ["integer", "null"], "description": "1, or as n"},
            **{name: {"$ref": f"#/components/schemas/ChatRequest/properties/{name}"} for name in _SHARED},
        },
    },
)
_SCORES = {
    "type": "object",
    "required": ["tokens", "token_logprobs", "top_logprobs", "text_offset"],
    "properties": {
        "tokens": {"type": "array", "items": {"type": "string"}},
        "token_logprobs": {"type": "array", "items": {"type": "number"}},
        "top_logprobs": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "number"}}},
        "text_offset": {"type": "array", "items": {"type": "integer"}},
    },
}
_CHOICE = {
    "type": "object",
    "required": ["text", "index", "logprobs", "finish_reason"],
    "properties": {
        "text": {"type": "string"},
        "index": {"type": "integer"},
        "logprobs": {"anyOf": [_SCORES, {"type": "null"}]},
        "finish_reason": {"enum": ["stop", "length", None]},
    },
}
_ANSWER = Component(
    "Completion",
    {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "text_completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "system_fingerprint": {"type": ["string", "null"]},
            "choices": {"type": "array", "items": _CHOICE},
            "usage": {"type": ["object", "null"]},
            "timings": {"type": "object"},
            "not_enforced": {"type": "array", "items": {"type": "string"}},
            "notes": {"type": "array", "items": {"type": "string"}},
        },
    },
)
OPERATIONS = (
    Operation(
        method="post",
        path="/completions",
        name="createCompletion",
        summary="Continue a text, or each of several, as it is: without the model's chat template.",
        request=_REQUEST,
        answer=_ANSWER,
        stream=Stream((_ANSWER, OPENAI_ERROR), end="[DONE]"),
        error=OPENAI_ERROR,
        success="The answer.",
    ),
)


class Completions(Exchange):
    """Control tokens in a prompt, such as `<|im_start|>`, are parsed: a client writes the whole prompt.

    Several prompts are answered one after the other, with `n` choices each.
    """

    def __init__(self, request: ChatRequest, prompts: tuple[str, ...], *, is_list: bool) -> None:
        super().__init__(request, stream=bool(request.stream), paths=_paths("prompt"))
        self._prompts = prompts
        self._is_list = is_list
        self._choices_each = request.n or 1

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Completions:
        """Raises RequestError with the path of the wrong field."""
        for name in body:
            if name not in _SHARED and name not in _OWN:
                raise RequestError(f"unknown field{did_you_mean(name, [*_SHARED, *_OWN])}", name)
        prompts = _prompts(body.get("prompt"))
        fields = {name: value for name, value in body.items() if name in _SHARED}
        if all(fields.get(name) is None for name in ("max_tokens", "n_predict")):
            fields["max_tokens"] = _MAX_TOKENS
        if body.get("logprobs") is not None:
            if (logprobs := _integer(body["logprobs"])) is None or not 0 <= logprobs <= _MAX_LOGPROBS:
                raise RequestError(f"must be an integer from 0 to {_MAX_LOGPROBS}", "logprobs")
            fields |= {"logprobs": True, "top_logprobs": logprobs}
        if body.get("echo") is not None and body["echo"] is not False:
            raise RequestError("is not supported: an answer has the new text alone", "echo")
        if body.get("suffix") not in (None, ""):
            raise RequestError("is not supported; send a prompt in the model's own form", "suffix")
        request = parsed({**fields, "messages": [{"role": "user", "content": prompts[0]}]}, _paths("prompt"))
        if body.get("best_of") is not None and _integer(body["best_of"]) not in (1, request.n or 1):
            raise RequestError("is not supported; send n", "best_of")
        return cls(request, prompts, is_list=not isinstance(body["prompt"], str))

    def chunks(self, run: Run) -> Chunks:
        return joined(self._runs(run)) if len(self._prompts) > 1 else next(self._runs(run))

    def whole(self, completion: ChatCompletion) -> bytes:
        choices = [
            self._choice(choice.index, choice.message.content or "", choice.logprobs, choice.finish_reason, 0)
            for choice in completion.choices
        ]
        return _json({**_head(completion, choices), "usage": completion.usage, **_extensions(completion)})

    def events(self, chunks: Chunks) -> Generator[bytes, None, None]:
        wants_usage = self.request.wants_usage
        lengths: dict[int, int] = {}
        for chunk in chunks:
            choices = []
            for choice in chunk.choices:
                if choice.delta.content or choice.logprobs or choice.finish_reason:
                    before = lengths.get(choice.index, 0)
                    text = choice.delta.content or ""
                    choices.append(self._choice(choice.index, text, choice.logprobs, choice.finish_reason, before))
                    entries = choice.logprobs.content if choice.logprobs else []
                    lengths[choice.index] = before + sum(len(entry.token) for entry in entries)
            if not choices and not (wants_usage and chunk.usage):
                continue
            fields = _head(chunk, choices)
            if wants_usage:
                fields["usage"] = chunk.usage
            yield event(_json(fields | _extensions(chunk)))
        yield event(b"[DONE]")

    def failure(self, error: HTTPError) -> bytes:
        return event(error.json())

    def _runs(self, run: Run) -> Iterator[Chunks]:
        for number, prompt in enumerate(self._prompts):
            if self._is_list:
                self._paths = _paths(f"prompt.{number}")
            [message] = self.request.messages
            message = message.model_copy(update={"content": prompt})
            yield run(self.request.model_copy(update={"messages": (message,)}), raw=True)

    def _choice(
        self, index: int, text: str, logprobs: ChoiceLogprobs | None, finish_reason: str | None, before: int
    ) -> dict[str, Any]:
        """Return a choice, or a piece of one behind `before` characters."""
        offset = len(self._prompts[index // self._choices_each]) + before
        scores = _scores(logprobs.content, offset) if logprobs else None
        return {"text": text, "index": index, "logprobs": scores, "finish_reason": finish_reason}


def _integer(value: object) -> int | None:
    """Return a JSON number that is whole, as clients of other languages write it, too; None for anything else."""
    number = None if isinstance(value, str | bool) else as_number(value)
    return number if isinstance(number, int) else None


def _prompts(value: object) -> tuple[str, ...]:
    prompts = [value] if isinstance(value, str) else value
    if value is None:
        raise RequestError("is required", "prompt")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise RequestError("must be a string or a list of strings; token ids are not supported", "prompt")
    if not 1 <= len(prompts) <= _MAX_PROMPTS:
        raise RequestError(f"must have from 1 to {_MAX_PROMPTS} items", "prompt")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise RequestError("must not be empty", "prompt" if isinstance(value, str) else f"prompt.{number}")
    return tuple(prompts)


def _paths(prompt: str) -> dict[str, str]:
    return {"messages": prompt, "messages.0": prompt, "messages.0.content": prompt, "top_logprobs": "logprobs"}


def _scores(entries: list[TokenLogprob], offset: int) -> dict[str, list[Any]]:
    """Return log probabilities in the form of this API. `offset`: characters before the first token."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [
            {top.token: top.logprob for top in (entry, *reversed(entry.top_logprobs))} for entry in entries
        ],
        "text_offset": offsets,
    }


def _head(answer: ChatCompletion | ChatCompletionChunk, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": answer.id.replace("chatcmpl-", "cmpl-"),
        "object": "text_completion",
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": answer.system_fingerprint,
        "choices": choices,
    }


def _extensions(answer: ChatCompletion | ChatCompletionChunk) -> dict[str, Any]:
    values = {"timings": answer.timings, "not_enforced": answer.not_enforced, "notes": answer.notes}
    return {name: value for name, value in values.items() if value is not None}


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, default=lambda value: value.model_dump(mode="json")).encode()
