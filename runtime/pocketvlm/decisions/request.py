"""OpenAI's decisions: questions about an input, as a chat request and choices for each.

https://developers.openai.com/api/reference/resources/decisions
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StrictBool, Tag

from pocketvlm.decisions.choices import MAX_CHOICES, YES_NO, Choices, texts_of
from pocketvlm.errors import RequestError
from pocketvlm.messages.base import Frozen, JsonObject, Text, by_field, by_form, fields_of
from pocketvlm.messages.field_errors import validated
from pocketvlm.messages.ignored import IgnoredFields

MAX_QUESTIONS = 400  # OpenAI's
_STATEMENT = "{} Is this true?"  # a predicate may be a statement, and a model answers questions

Parts = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[tuple[JsonObject, ...], Tag("<list>"), Field(min_length=1)],
    by_form("must be a string or a list of parts"),
]


def _form(value: object) -> str:
    return "<bool>" if isinstance(value, bool) else "<text>"


class Option(Frozen):
    """A choice: `value` is its text, or true or false."""

    value: Annotated[Annotated[StrictBool, Tag("<bool>")] | Annotated[Text, Tag("<text>")], Discriminator(_form)]
    description: Text | None = None

    @property
    def text(self) -> str:
        return json.dumps(self.value) if isinstance(self.value, bool) else self.value


class Level(Frozen):
    label: Text
    description: Text | None = None


class _Question(Frozen):
    instructions: Parts
    name: Text | None = None


class PredicateQuestion(_Question):
    """Whether a statement is true, or the answer to a question is yes."""

    type: Literal["predicate"]


class ChoiceQuestion(_Question):
    type: Literal["choice"]
    choices: Annotated[tuple[Option, ...], Field(max_length=MAX_CHOICES)]


class ScoreQuestion(_Question):
    """Where something is among `levels`, from the lowest to the highest."""

    type: Literal["score"]
    levels: Annotated[tuple[Level, ...], Field(max_length=MAX_CHOICES)]


Question = Annotated[
    Annotated[
        Annotated[PredicateQuestion, Tag("<predicate>")]
        | Annotated[ChoiceQuestion, Tag("<choice>")]
        | Annotated[ScoreQuestion, Tag("<score>")],
        by_field("type", ("predicate", "choice", "score")),
    ],
    BeforeValidator(fields_of),
]


class DecisionRequest(IgnoredFields):
    """Questions about an `input`: a text, or messages with texts and pictures."""

    input: Parts
    questions: Annotated[tuple[Question, ...], Field(min_length=1, max_length=MAX_QUESTIONS)]
    model: Text | None = None

    @classmethod
    def parse_object(cls, body: Mapping[str, Any]) -> DecisionRequest:
        """Validate a request that is one object. Raises RequestError with the path of the first wrong field."""
        return validated(cls, body)

    def asked(self) -> Iterator[AskedQuestion]:
        """Yield the questions. Raises RequestError with the path of a wrong field."""
        messages, paths = _input_messages(self.input)
        for number, question in enumerate(self.questions):
            path = f"questions.{number}"
            yield _asked(question, f"{path}.instructions", messages, paths, _choices(question, path), self.model)


@dataclass(frozen=True)
class AskedQuestion:
    """`body` is that of a ChatRequest, and `paths` are those of its fields in what the client sent."""

    question: Question
    choices: Choices
    body: Mapping[str, Any]
    paths: Mapping[str, str]


def _asked(
    question: Question,
    path: str,
    messages: list[dict[str, Any]],
    input_paths: Mapping[str, str],
    choices: Choices,
    model: str | None,
) -> AskedQuestion:
    """Put a question behind the messages of the input: into the last one, if that is the user's."""
    messages, paths, parts = [*messages], {**input_paths, YES_NO.param: path}, _question_parts(question, path)
    if not messages or messages[-1].get("role") != "user":
        messages.append({"role": "user", "content": []})
    last, place = messages[-1], f"messages.{len(messages) - 1}"
    content = last.get("content") or []
    content = [_text(content)] if isinstance(content, str) else [*content]
    paths.setdefault(place, "input")
    if content and isinstance(content[-1], Mapping) and content[-1].get("type") == "text" and "text" in parts[0]:
        parts[0] = _text(f"\n\n{parts[0]['text']}")
    for index in range(len(parts)):
        own = path if isinstance(question.instructions, str) else f"{path}.{index}"
        paths[f"{place}.content.{len(content) + index}"] = own
    messages[-1] = {**last, "content": [*content, *parts]}
    return AskedQuestion(question, choices, {"messages": messages, "model": model}, paths)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _plain_part(part: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a part as messages of a chat have it: JSON becomes text. Raises RequestError for a text that is none."""
    if part.get("type") in ("input_text", "text") and not isinstance(part.get("text", ""), str):
        raise RequestError("must be a string", f"{path}.text")
    if part.get("type") == "input_json":
        return _text(json.dumps(part.get("data"), ensure_ascii=False))
    if part.get("type") == "input_text":
        return {**part, "type": "text"}
    return {**part}


def _input_messages(value: str | tuple[dict[str, Any], ...]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the messages of an input, and the paths of their fields in it."""
    if isinstance(value, str):
        return ([{"role": "user", "content": value}] if value else []), {"messages": "input", "messages.0": "input"}
    messages = []
    for number, item in enumerate(value):
        if item.get("type", "message") != "message":
            raise RequestError(
                "must be a message; calls of tools and their results are not supported", f"input.{number}"
            )
        content = item.get("content")
        path = f"input.{number}.content"
        if isinstance(content, list):
            content = [
                _plain_part(part, f"{path}.{place}") if isinstance(part, Mapping) else part
                for place, part in enumerate(content)
            ]
        elif not isinstance(content, str | None):
            raise RequestError("must be a string or a list of parts", path)
        fields = {name: value for name, value in item.items() if name not in ("type", "phase")}
        messages.append({**fields, "content": content})
    return messages, {"messages": "input"} | {f"messages.{i}": f"input.{i}" for i in range(len(messages))}


def _question_parts(question: Question, path: str) -> list[dict[str, Any]]:
    """Return the text of a question, and what its answers mean, if it says that."""
    instructions = question.instructions
    if isinstance(instructions, str):
        parts = [_text(instructions)]
    else:
        parts = [_plain_part(part, f"{path}.{place}") for place, part in enumerate(instructions)]
    meanings: list[tuple[str, str | None]] = []
    match question:
        case PredicateQuestion(instructions=str(text)) if not text.rstrip().endswith("?"):
            parts = [_text(_STATEMENT.format(text.rstrip()))]
        case ChoiceQuestion():
            meanings = [(option.text, option.description) for option in question.choices]
        case ScoreQuestion():
            meanings = [(level.label, level.description) for level in question.levels]
    if any(description for _, description in meanings):
        lines = [f"\n- {name}: {description}" if description else f"\n- {name}" for name, description in meanings]
        parts.append(_text("".join(lines)))
    return parts


def _choices(question: Question, path: str) -> Choices:
    match question:
        case PredicateQuestion():
            return YES_NO
        case ChoiceQuestion():
            return texts_of([option.text for option in question.choices], f"{path}.choices")
        case ScoreQuestion():
            return texts_of([level.label for level in question.levels], f"{path}.levels")
