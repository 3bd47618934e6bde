"""Chat template -> ordered spans of text and pictures.

The model's own template runs in a sandbox that traces which characters a user wrote (`sandbox.py`), so nothing is ever
searched for in user text and nothing in it acts as a delimiter: a special token that a user types stays text, and a
picture stands where the template wrote its placeholder for it, or where its part stood in the message.
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
    """The place of the request's picture number `index`, from 0, in the order of the messages."""

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
    """A model's chat template, compiled, and which forms of content it takes.

    `source` is the Jinja text, `bos` and `eos` the texts of those tokens. Without a template ChatML stands in,
    which is logged as a warning. `image_token` is what the template writes for a picture, as in `<image>`; without it,
    or if the template does not write it for a picture, pictures stand in the message's text where their parts do.
    Consecutive text parts are joined with nothing between, for templates that take strings only. `path` names the
    model in errors.

    Raises ModelError for a template that cannot be compiled. A ChatTemplate does not change: any thread may render.
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
                "%s has no chat template: ChatML stands in, and a model that does not know it may answer with nothing",
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
        # Whether content is taken as a string, and as a list of parts. The other roles are tried beside a user's.
        self._no_tools: tuple[()] | None = None
        self._takes = {"user": (self._tried("user", string=True), self._tried("user", string=False))}
        if not any(self._takes["user"]):  # one that is made for tools may go through them without asking
            self._no_tools = ()
            self._takes = {"user": (self._tried("user", string=True), self._tried("user", string=False))}
        self._first_only: set[str] = set()  # roles of which it reads one part, and no string
        for role in ("system", "assistant"):
            self._takes[role] = (self._tried(role, string=True), self._tried(role, string=False))
            if not any(self._takes[role]) and self._tried(role, string=False, words=("pocketvlm",)):
                self._takes[role] = (False, True)
                self._first_only.add(role)
        self.takes_system = any(self._takes["system"])
        self._places_pictures = image_token is not None and self._tried_picture()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        effort: str | None = None,
        text_arguments: bool = False,
        no_content: bool = False,
        add_generation_prompt: bool = True,
    ) -> tuple[Span, ...]:
        """The prompt in order. No text span is empty, and neighbours of one kind are one span.

        `tools` as in a request. The template gets earlier calls' arguments as an object, or as JSON (`text_arguments`),
        and the content beside them as text, or none at all (`no_content`). `effort` as in `reasoning_effort`; a
        template that knows no such thing takes no notice, and one that refuses this word gets the nearest it takes.

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
            rendered = self._weighed(_efforts(effort), entries, add_generation_prompt, _traced(tools))
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

    def _weighed(self, efforts: Sequence[Mapping[str, Any]], *given: Any) -> str:
        """With the first of `efforts` that the template does not refuse."""
        for effort in efforts[:-1]:
            with suppress(sandbox.RefusalError):
                return self._run(*given, **effort)
        return self._run(*given, **efforts[-1])

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
        except Exception as error:  # raised again
            sandbox.let_go(error)
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

    def _content(self, role: str, pieces: Sequence[_Piece], given_as_string: bool) -> str | list[dict[str, str]]:
        """As it was given, if the template takes that, else in the form that it takes."""
        strings, parts = self._takes.get(role, (True, True))
        has_picture = any(isinstance(piece, ImageSpan) for piece in pieces)
        if has_picture and not self._places_pictures:
            pieces, has_picture, given_as_string = (_flat(pieces),), False, True
        if not has_picture and role in self._first_only:
            pieces = (_flat(pieces),)
        if not has_picture and (given_as_string if strings == parts else strings):
            return _flat(pieces)
        return [
            {"type": "image"} if isinstance(piece, ImageSpan) else {"type": "text", "text": piece} for piece in pieces
        ]

    def _tried(self, role: str, *, string: bool, words: Sequence[str] = ("pocket", "vlm")) -> bool:
        """Whether content of this form reaches the prompt, from a message of this role.

        It is in two parts where nobody says otherwise, as some templates read only the first.
        """
        words = [Traced(word) for word in words]
        message = {"role": role, "content": _flat(words) if string else _text_parts(words)}
        question = {"role": "user", "content": "?" if role == "user" or self._takes["user"][0] else _text_parts("?")}
        before = [question] if role == "assistant" else []
        after = [question] if role != "user" else []
        try:
            spans = self._spans(self._run([*before, message, *after]), find_pictures=False)
            told = "".join(span.text for span in spans if isinstance(span, TextSpan) and not span.special)
        except Exception:  # a template may raise anything
            return False
        # A template for strings may well write out the list itself, as Python shows it.
        return all(word in told for word in words) and "type" not in told

    def _tried_picture(self) -> bool:
        """Whether the template writes its placeholder once for one picture, and the text beside it."""
        words = [Traced("pocket"), Traced("vlm")]
        content = [*_text_parts(words[:1]), {"type": "image"}, *_text_parts(words[1:])]
        try:
            spans = list(self._spans(self._run([{"role": "user", "content": content}]), find_pictures=True))
        except Exception:  # a template may raise anything
            return False
        told = "".join(span.text for span in spans if isinstance(span, TextSpan) and not span.special)
        return sum(isinstance(span, ImageSpan) for span in spans) == 1 and all(word in told for word in words)


def isolate_control_tokens(spans: Iterable[TextSpan | T], tokens: Collection[str]) -> tuple[TextSpan | T, ...]:
    """Spans with `special` hold control tokens only; all text between two of them is one span without it.

    Splitting text where a user's begins would change its tokens: in "User: What", " What" is one token. Tokenized span
    by span, the result gives the same ids as the whole prompt does, as long as no user wrote a control token.
    `tokens` are the texts of the vocabulary's control tokens.
    """
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    def split(span: TextSpan | T) -> Iterator[TextSpan | T]:
        if not isinstance(span, TextSpan) or not span.special:
            yield span
            return
        at = 0
        for match in pattern.finditer(span.text):
            yield TextSpan(span.text[at : match.start()], False)
            yield TextSpan(match[0], True)
            at = match.end()
        yield TextSpan(span.text[at:], False)

    return tuple(joined(part for span in spans for part in split(span)))


def joined(pieces: Iterable[TextSpan | T]) -> Iterator[TextSpan | T]:
    """Neighbouring texts of one kind as one, none of them empty; anything else as it is."""
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


_NEAR = {"none": ("no_think",), "minimal": ("low",), "medium": ("high",), "xhigh": ("max", "high"), "max": ("high",)}


def _efforts(effort: str | None) -> list[dict[str, Any]]:
    """What templates may call `reasoning_effort`, in the order in which to try: nearest words, then no word."""
    if effort is None:
        return [{}]
    on = effort != "none"
    switch: dict[str, Any] = {"enable_thinking": on, "thinking": on, "thinking_mode": "enabled" if on else "disabled"}
    if not on:
        switch["thinking_budget"] = 0
    words = [Traced(word) for word in (effort, *_NEAR.get(effort, ()))]
    return [*({**switch, "reasoning_effort": word, "thinking_effort": word} for word in words), switch]


def _parts(message: Message) -> Iterator[str | None]:
    """Texts, and None for a picture."""
    if isinstance(message.content, str):
        yield message.content
    else:
        for part in message.content or ():
            yield part.text if isinstance(part, TextPart) else None


def _call(call: ToolCall, *, as_text: bool) -> dict[str, Any]:
    """As templates take it: with the arguments as an object, where they are one, or as text."""
    arguments: Any = call.function.arguments
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, str) and not as_text:
        with suppress(ValueError, RecursionError):
            parsed = _traced(json.loads(arguments))
            arguments = parsed if isinstance(parsed, dict) else arguments
    function = {"name": call.function.name, "arguments": arguments}
    found: dict[str, Any] = _traced({"type": "function", "id": call.id, "function": function})
    return found


def _traced(value: Any) -> Any:
    """JSON whose texts are a user's."""
    if isinstance(value, str):
        return Traced(value)
    if isinstance(value, Mapping):
        return {Traced(key): _traced(item) for key, item in value.items()}
    return [_traced(item) for item in value] if isinstance(value, list | tuple) else value


def _flat(pieces: Iterable[_Piece]) -> str:
    """One string, in which a run of its own stands for each picture."""
    return sandbox.joined(
        Traced("\ufffc", ((1, piece.index),)) if isinstance(piece, ImageSpan) else piece for piece in pieces
    )


def _text_parts(texts: Iterable[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]
