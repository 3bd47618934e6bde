"""Render messages with a model's chat template to ordered spans of text and pictures.

The template runs in a sandbox that traces which characters a user wrote (`sandbox.py`). So nothing is ever searched for
in user text, and nothing in it acts as a delimiter: a special token that a user types stays text. A picture is placed
where the template wrote its placeholder, or where its part was in the message.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from jinja2 import TemplateSyntaxError

from pocketvlm.errors import ModelError, RequestError
from pocketvlm.messages import AssistantMessage, Message, TextPart, ToolCall, ToolMessage
from pocketvlm.templates import sandbox
from pocketvlm.templates.sandbox import Traced


@dataclass(frozen=True)
class TextSpan:
    """Text to tokenize. With `special`, control tokens in it are parsed; text that a user wrote never has it."""

    text: str
    special: bool


@dataclass(frozen=True)
class ImageSpan:
    """The place of a picture. `index` numbers the request's pictures from 0, in the order of the messages."""

    index: int


Span: TypeAlias = TextSpan | ImageSpan
_Piece: TypeAlias = str | ImageSpan
T = TypeVar("T")
_log = logging.getLogger(__name__)


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ChatTemplate:
    """A model's compiled chat template, and the forms of content that it accepts.

    `source` is the Jinja text, `bos` and `eos` the texts of those tokens. Without a template ChatML is used, and a
    warning is logged. `image_token` is what the template writes for a picture, such as `<image>`. Without it, or if the
    template does not write it for a picture, pictures are placed in the message's text where their parts are.
    For templates that accept only strings, text parts are concatenated. `path` names the model in errors.

    Raises ModelError for a template that cannot be compiled. A ChatTemplate is immutable, so any thread may render.
    """

    def __init__(
        self,
        source: str | None,
        *,
        bos: str = "",
        eos: str = "",
        image_token: str | None = None,
        path: str | Path | None = None,
    ) -> None:
        if not source:
            _log.warning(
                "%s has no chat template; ChatML is used, and a model that was not trained on it may not answer",
                path or "the model",
            )
            source = CHATML
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._image_token = image_token
        self._path = path
        self._knows_developer = "developer" in source
        self.thinks = "</think>" in source
        try:
            self._template = sandbox.compiled(source)
        except TemplateSyntaxError as error:
            raise ModelError(f"chat template, line {error.lineno}: {error.message}", path) from None
        except Exception as error:  # a template may raise anything
            raise ModelError(f"chat template: {type(error).__name__}: {error}", path) from None
        self._no_tools: tuple[()] | None = None  # what the template gets as `tools` if there are none
        # For each role, whether content is accepted as a string, and as a list of parts. Other roles are probed with a
        # message of the user, so the user's comes first.
        self._accepts = {"user": self._probe_forms("user")}
        if not any(self._accepts["user"]):  # a template for tools may iterate over `tools` without checking for None
            self._no_tools = ()
            self._accepts = {"user": self._probe_forms("user")}
        self._first_part_only: set[str] = set()  # roles whose content must be a list, of which only one part is read
        for role in ("system", "assistant"):
            self._accepts[role] = self._probe_forms(role)
            if not any(self._accepts[role]) and self._probe(role, string=False, words=("pocketvlm",)):
                self._accepts[role] = (False, True)
                self._first_part_only.add(role)
        self.takes_system = any(self._accepts["system"])
        self._places_pictures = image_token is not None and self._probe_picture()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        effort: str | None = None,
        variables: Mapping[str, Any] | None = None,
        text_arguments: bool = False,
        no_content: bool = False,
        add_generation_prompt: bool = True,
    ) -> tuple[Span, ...]:
        """Return the spans of the prompt. No text span is empty, and adjacent text of one kind is one span.

        `tools` are those of a request. The template gets the arguments of earlier calls as an object, or as JSON text
        (`text_arguments`), and the content of such messages as text, or None (`no_content`). `effort` is
        `reasoning_effort`; if a template refuses the word, it gets the nearest one that it accepts. `variables`, which
        the request sets for the template, win over what `effort` sets.

        Raises RequestError where the template refuses the messages or does not place every picture, and ModelError
        where the template itself fails.
        """
        entries: list[dict[str, Any]] = []
        pictures = 0
        for message in messages:
            role = "system" if message.role == "developer" and not self._knows_developer else message.role
            pieces: list[_Piece] = []
            for part in _parts(message):
                if isinstance(part, str):
                    pieces.append(Traced(part))
                else:
                    pieces.append(ImageSpan(pictures))
                    pictures += 1
            as_string = isinstance(message.content, str) or not pieces
            entry: dict[str, Any] = {"role": role, "content": self._content(role, pieces, as_string)}
            if isinstance(message, AssistantMessage) and message.tool_calls:
                entry["tool_calls"] = [_call(call, as_text=text_arguments) for call in message.tool_calls]
                if no_content:
                    entry["content"] = None
            elif isinstance(message, ToolMessage) and message.tool_call_id is not None:
                entry["tool_call_id"] = Traced(message.tool_call_id)
            entries.append(entry if message.name is None else {**entry, "name": Traced(message.name)})
        try:
            alternatives = _template_variables(effort, variables or {})
            rendered = self._render_first(alternatives, entries, add_generation_prompt, _traced(tools))
            spans = tuple(self._spans(rendered, self._places_pictures))
        except sandbox.RefusalError as error:
            raise RequestError(f"the model's chat template refuses the messages: {error}", "messages") from None
        except Exception as error:  # a template may raise anything
            raise ModelError(f"the chat template fails: {type(error).__name__}: {error}", self._path) from error
        placed = [span.index for span in spans if isinstance(span, ImageSpan)]
        if placed != list(range(pictures)):
            raise RequestError(
                f"the model's chat template does not place the pictures: {len(placed)} places for {pictures}",
                "messages",
            )
        return spans

    def _render_first(self, alternatives: Sequence[Mapping[str, Any]], *arguments: Any) -> str:
        """Render with the first of the `alternatives` for variables that the template does not refuse."""
        for variables in alternatives[:-1]:
            with suppress(sandbox.RefusalError):
                return self._run(*arguments, **variables)
        return self._run(*arguments, **alternatives[-1])

    def _run(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, tools: Any = None, **variables: Any
    ) -> str:
        try:
            return self._template.render(
                messages=messages,
                tools=self._no_tools if tools is None else tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
                **variables,
            )
        except Exception as error:
            sandbox.drop_traceback(error)
            raise

    def _spans(self, rendered: str, find_pictures: bool) -> Iterator[Span]:
        placed = 0
        for text, author in sandbox.runs_of(rendered):
            if author >= 0:
                yield ImageSpan(author)
            elif author == sandbox.TEMPLATE and find_pictures and self._image_token:
                for number, piece in enumerate(text.split(self._image_token)):
                    if number:
                        yield ImageSpan(placed)
                        placed += 1
                    if piece:
                        yield TextSpan(piece, special=True)
            else:
                yield TextSpan(text, special=author == sandbox.TEMPLATE)

    def _content(self, role: str, pieces: Sequence[_Piece], as_string: bool) -> str | list[dict[str, str]]:
        """Return content in the request's form if the template accepts it, else in the form that it accepts."""
        strings, parts = self._accepts.get(role, (True, True))
        has_picture = any(isinstance(piece, ImageSpan) for piece in pieces)
        if has_picture and not self._places_pictures:
            pieces, has_picture, as_string = (_flat(pieces),), False, True
        if not has_picture and role in self._first_part_only:
            pieces = (_flat(pieces),)
        if not has_picture and (as_string if strings == parts else strings):
            return _flat(pieces)
        return [
            {"type": "image"} if isinstance(piece, ImageSpan) else {"type": "text", "text": piece} for piece in pieces
        ]

    def _probe_forms(self, role: str) -> tuple[bool, bool]:
        return self._probe(role, string=True), self._probe(role, string=False)

    def _probe(self, role: str, *, string: bool, words: Sequence[str] = ("pocket", "vlm")) -> bool:
        """Return whether content of this form reaches the prompt from a message of this role.

        By default a list has two parts, because some templates read only the first.
        """
        words = [Traced(word) for word in words]
        message = {"role": role, "content": _flat(words) if string else _text_parts(words)}
        question = {"role": "user", "content": "?" if role == "user" or self._accepts["user"][0] else _text_parts("?")}
        before = [question] if role == "assistant" else []
        after = [question] if role != "user" else []
        try:
            user_text = _user_text(self._spans(self._run([*before, message, *after]), find_pictures=False))
        except Exception:  # a template may raise anything
            return False
        # A template for strings may write out the list itself, in Python's notation.
        return all(word in user_text for word in words) and "type" not in user_text

    def _probe_picture(self) -> bool:
        """Return whether the template writes its placeholder once for one picture, and the text around it."""
        words = [Traced("pocket"), Traced("vlm")]
        content = [*_text_parts(words[:1]), {"type": "image"}, *_text_parts(words[1:])]
        try:
            spans = list(self._spans(self._run([{"role": "user", "content": content}]), find_pictures=True))
        except Exception:  # a template may raise anything
            return False
        user_text = _user_text(spans)
        return sum(isinstance(span, ImageSpan) for span in spans) == 1 and all(word in user_text for word in words)


def isolate_control_tokens(spans: Iterable[TextSpan | T], tokens: Collection[str]) -> tuple[TextSpan | T, ...]:
    """Return spans in which `special` ones are single control tokens, and all text between two of them is one span.

    `tokens` are the texts of the vocabulary's control tokens. Splitting text where a user's text begins would change
    its tokens: in "User: What", " What" is one token. As long as no user wrote a control token, the returned spans,
    tokenized one by one, have the same ids as the whole prompt.
    """
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    def split(span: TextSpan | T) -> Iterator[TextSpan | T]:
        if not isinstance(span, TextSpan) or not span.special:
            yield span
            return
        end = 0
        for match in pattern.finditer(span.text):
            yield TextSpan(span.text[end : match.start()], False)
            yield TextSpan(match[0], True)
            end = match.end()
        yield TextSpan(span.text[end:], False)

    return tuple(joined(part for span in spans for part in split(span)))


def joined(pieces: Iterable[TextSpan | T]) -> Iterator[TextSpan | T]:
    """Join adjacent texts of one kind, drop empty ones, and yield everything else unchanged."""
    text: TextSpan | None = None
    for piece in pieces:
        if isinstance(piece, TextSpan) and text is not None and text.special == piece.special:
            text = TextSpan(text.text + piece.text, text.special)
            continue
        if isinstance(piece, TextSpan) and not piece.text:
            continue
        if text is not None:
            yield text
        text = piece if isinstance(piece, TextSpan) else None
        if not isinstance(piece, TextSpan):
            yield piece
    if text is not None:
        yield text


# For a word of reasoning_effort, the nearest ones to try where a template refuses it.
_NEAREST_EFFORTS = {
    "none": ("no_think",),
    "minimal": ("low",),
    "medium": ("high",),
    "xhigh": ("max", "high"),
    "max": ("high",),
}


def _effort_variables(effort: str | None) -> list[dict[str, Any]]:
    """Return the variables that templates may read for `reasoning_effort`, in the order in which to try them.

    The nearest words come first, then variables without a word.
    """
    if effort is None:
        return [{}]
    on = effort != "none"
    switch: dict[str, Any] = {"enable_thinking": on, "thinking": on, "thinking_mode": "enabled" if on else "disabled"}
    if not on:
        switch["thinking_budget"] = 0
    words = [Traced(word) for word in (effort, *_NEAREST_EFFORTS.get(effort, ()))]
    return [*({**switch, "reasoning_effort": word, "thinking_effort": word} for word in words), switch]


def _template_variables(effort: str | None, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the variables of `_effort_variables` with those that the request sets, which are text of a user."""
    traced = {name: _traced(value) for name, value in given.items()}
    return [{**variables, **traced} for variables in _effort_variables(effort)]


def _parts(message: Message) -> Iterator[str | None]:
    """Yield the texts of a message, and None for a picture."""
    if isinstance(message.content, str):
        yield message.content
    else:
        for part in message.content or ():
            yield part.text if isinstance(part, TextPart) else None


def _call(call: ToolCall, *, as_text: bool) -> dict[str, Any]:
    """Return a call for templates: with the arguments as text, or as an object if they are one."""
    arguments: Any = call.function.arguments
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, str) and not as_text:
        with suppress(ValueError, RecursionError):
            parsed = _traced(json.loads(arguments))
            arguments = parsed if isinstance(parsed, dict) else arguments
    function = {"name": call.function.name, "arguments": arguments}
    entry: dict[str, Any] = _traced({"type": "function", "id": call.id, "function": function})
    return entry


def _traced(value: Any) -> Any:
    """Return a JSON value with all texts traced as the user's."""
    if isinstance(value, str):
        return Traced(value)
    if isinstance(value, Mapping):
        return {Traced(key): _traced(item) for key, item in value.items()}
    return [_traced(item) for item in value] if isinstance(value, list | tuple) else value


def _flat(pieces: Iterable[_Piece]) -> str:
    """Return one string in which each picture is a run of one character."""
    return sandbox.joined(
        Traced("\ufffc", ((1, piece.index),)) if isinstance(piece, ImageSpan) else piece for piece in pieces
    )


def _text_parts(texts: Iterable[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _user_text(spans: Iterable[Span]) -> str:
    return "".join(span.text for span in spans if isinstance(span, TextSpan) and not span.special)
