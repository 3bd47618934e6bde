"""Render messages with a model's chat template to ordered spans of text and pictures.

The template runs in a sandbox that traces which characters a user wrote (`sandbox.py`). So nothing is ever searched for
in user text, and nothing in it acts as a delimiter: a special token that a user types stays text. A picture is placed
where the template wrote its placeholder, or where its part was in the message.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from jinja2 import TemplateSyntaxError

from pocketvlm.errors import ModelError, PocketVLMError, RequestError, shortened
from pocketvlm.messages import Message
from pocketvlm.templates import given_texts, sandbox
from pocketvlm.templates.chatml import CHATML
from pocketvlm.templates.from_messages import traced_json, turns_of
from pocketvlm.templates.given_texts import missing
from pocketvlm.templates.limits import LimitError, Limits, limited, shares_time, sharing_time
from pocketvlm.templates.sandbox import Traced
from pocketvlm.templates.thoughts import THINK, THINK_END, ThoughtForm, detect_thought_form, with_thought
from pocketvlm.templates.turns import Piece, Turns, VideoIndex, arrangements, flat, text_parts
from pocketvlm.templates.variables import template_variables


@dataclass(frozen=True)
class TextSpan:
    """Text to tokenize. With `special`, control tokens in it are parsed; text that a user wrote never has it.

    With `opening`, the template wrote it after the last message, to open the answer.
    """

    text: str
    special: bool
    opening: bool = field(default=False, repr=False)  # proofs of earlier versions have hashed the rest


@dataclass(frozen=True)
class ImageSpan:
    """The place of a picture or video. `index` numbers those of the request from 0, in the order of the messages."""

    index: int


Span: TypeAlias = TextSpan | ImageSpan
T = TypeVar("T")
_LIMITS = Limits()
_log = logging.getLogger(__name__)
# Templates may drop results of earlier calls, and text of messages with calls.
_MAY_BE_LOST = ("assistant", "tool")
_MAX_INCOMPLETE = 24  # arrangements that lose such a text, before the first of them is taken


class ChatTemplate:
    """A model's compiled chat template, and the forms of content that it accepts.

    `source` is the Jinja text, `bos` and `eos` the texts of those tokens. Without a template ChatML is used, and a
    warning is logged. `image_token` is what the template writes for a picture, such as `<image>`. Without it, or if the
    template does not write it for a picture, pictures are placed in the message's text where their parts are. So is a
    video, unless the template writes `video_token` for it.
    For templates that accept only strings, text parts are concatenated. `path` names the model in errors. `limits` are
    those of each rendering.

    Raises ModelError for a template that cannot be compiled, or does too much with the shortest conversations. A
    ChatTemplate is immutable, so any thread may render.
    """

    def __init__(
        self,
        source: str | None,
        *,
        bos: str = "",
        eos: str = "",
        image_token: str | None = None,
        video_token: str | None = None,
        path: str | Path | None = None,
        limits: Limits = _LIMITS,
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
        self._limits = limits
        self._knows_developer = "developer" in source
        self.thinks = "</think>" in source
        try:
            self._template = sandbox.compiled(source, limits)
        except TemplateSyntaxError as error:
            raise ModelError(f"chat template, line {error.lineno}: {shortened(error.message)}", path) from None
        except LimitError as error:
            raise self._limit_error(error) from None
        except Exception as error:  # a template may raise anything
            raise ModelError(f"chat template: {type(error).__name__}: {shortened(error)}", path) from None
        with self.probes():
            self._probe_all(source)
            self._probe_pictures(image_token, video_token)

    @contextmanager
    def probes(self) -> Iterator[None]:
        """Give all renderings inside together the time of one. The first that does too much ends the block.

        Raises ModelError at the end of the block, so that code inside may catch errors of the template.
        """
        try:
            with sharing_time(self._limits):
                yield
        except LimitError as error:
            raise self._limit_error(error) from None

    def _limit_error(self, error: LimitError) -> ModelError:
        return ModelError(f"the chat template {error}; is the file what you think it is?", self._path)

    def _probe_all(self, source: str) -> None:
        """Find out what the template knows, by rendering short conversations."""
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
        self._takes_late_system = self._probe_late_system()
        self._thought_form: ThoughtForm = "fields"
        if "think" in source or "reasoning" in source or "thought" in source:
            self._thought_form = detect_thought_form(
                lambda entries: self._run(entries, False, enable_thinking=True, thinking=True),
                lambda role, text: self._content(role, (text,), True),
            )

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
        continue_final_message: bool = False,
    ) -> tuple[Span, ...]:
        """Return the spans of the prompt. No text span is empty, and adjacent text of one kind is one span.

        `tools` are those of a request. The template gets the arguments of earlier calls as an object, or as JSON text
        (`text_arguments`), and the content of such messages as text, or None (`no_content`). `effort` is
        `reasoning_effort`; if a template refuses the word, it gets the nearest one that it accepts. `variables` are
        those that the request sets for the template; they win over what `effort` sets. With `continue_final_message`
        the prompt ends where the text of the last message ends, or its thought if it has no text; that message is an
        assistant's.

        If the template refuses the messages, leaves out a text or misplaces a picture, they are rearranged (see
        `turns.py`), with as few changes as possible.

        Raises RequestError where no arrangement helps, and ModelError where the template itself fails.
        """
        turns, texts = turns_of(messages, knows_developer=self._knows_developer, text_arguments=text_arguments)
        pictures = [index for turn in turns for index in turn.pictures]
        alternatives = template_variables(effort, traced_json(variables or {}))
        write = partial(self._render_first, alternatives, tools=traced_json(tools))
        errors: list[PocketVLMError] = []
        incomplete: list[tuple[Span, ...]] = []
        for arranged in arrangements(turns, late_system_texts=self._takes_late_system):
            try:
                if continue_final_message:
                    rendered = self._render_begun(arranged, partial(self._entries, no_content=no_content), write)
                else:
                    rendered = write(self._entries(arranged, no_content), add_generation_prompt)
                spans = tuple(joined(self._spans(rendered, self._places_pictures)))
            except sandbox.RefusalError as error:
                errors.append(
                    RequestError(f"the model's chat template refuses the messages: {shortened(error)}", "messages")
                )
                continue
            except LimitError as error:
                if shares_time():  # among probes
                    raise
                raise self._limit_error(error) from None
            except Exception as error:  # a template may raise anything
                errors.append(
                    ModelError(f"the chat template fails: {type(error).__name__}: {shortened(error)}", self._path)
                )
                sandbox.drop_traceback(error)  # it refers to this frame, and `errors` would refer to it
                errors[-1].__cause__ = error
                continue
            placed = [span.index for span in spans if isinstance(span, ImageSpan)]
            if placed != pictures:
                message = f"does not place the pictures: {len(placed)} places for {len(pictures)}"
                errors.append(RequestError(f"the model's chat template {message}", "messages"))
            elif not (lost := missing(texts, rendered)):
                return spans
            elif required := [text for text in lost if text.role not in _MAY_BE_LOST]:
                message = f"the model's chat template leaves out this text of the role {required[0].role}"
                errors.append(RequestError(message, required[0].path))
            else:
                incomplete.append(spans)
                if len(incomplete) == _MAX_INCOMPLETE:
                    break
        if incomplete:
            return incomplete[0]
        raise errors.pop(0)  # its traceback refers to this frame, which must not refer to it

    def _entries(self, turns: Turns, no_content: bool) -> list[dict[str, Any]]:
        """Return turns as the template gets them."""
        entries = []
        for turn in turns:
            entry: dict[str, Any] = {
                "role": turn.role,
                "content": self._content(turn.role, turn.pieces, turn.as_string),
            }
            if turn.calls:
                entry["tool_calls"] = list(turn.calls)
                if no_content:
                    entry["content"] = None
            if turn.call_id is not None:
                entry["tool_call_id"] = turn.call_id
            if turn.name is not None:
                entry["name"] = turn.name
            entries.append(with_thought(entry, turn.thought, self._thought_form))
        return entries

    def _render_begun(
        self, turns: Turns, entries_of: Callable[[Turns], list[dict[str, Any]]], write: Callable[..., str]
    ) -> str:
        """Render turns up to the end of the last one's text, or of its thought if it has no text.

        If the template does not write the text at the end, or writes it into a thought, the text follows what the
        template writes before an answer.
        """
        last = turns[-1]
        text = sandbox.joined(piece for piece in last.pieces if isinstance(piece, str))
        begun = text if last.has_text else last.thought
        with suppress(Exception):  # a template may raise anything
            entries = entries_of(turns)
            entries[-1]["prefix"] = True
            rendered = write(entries, False, continue_final_message=True)
            cut = given_texts.up_to_the_end_of(begun, rendered)
            if cut is not None and not (last.has_text and given_texts.is_in_thought(begun, cut)):
                return cut
        rendered = write(entries_of(turns[:-1]), True)
        opening = "" if rendered.rstrip().endswith(THINK) else f"{THINK}\n"
        if not last.has_text:
            return sandbox.joined([rendered, opening, begun])
        if not opening or (last.thought and self.thinks):
            return sandbox.joined([rendered, opening, last.thought, f"\n{THINK_END}\n\n", begun])
        return sandbox.joined([rendered, begun])

    def _render_first(
        self,
        alternatives: Sequence[Mapping[str, Any]],
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        *,
        tools: Any,
        **more: Any,
    ) -> str:
        """Render with the first of the `alternatives` for variables that the template does not refuse."""
        *others, last = ({**variables, **more} for variables in alternatives)
        for variables in others:
            with suppress(sandbox.RefusalError):
                return self._run(messages, add_generation_prompt, tools, **variables)
        return self._run(messages, add_generation_prompt, tools, **last)

    def _run(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, tools: Any = None, **variables: Any
    ) -> str:
        tools = self._no_tools if tools is None else tools
        try:
            with limited(self._limits, (messages, tools, variables)):
                return self._template.render(
                    messages=messages,
                    tools=tools,
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
                placed = author + 1
            elif author == sandbox.TEMPLATE and find_pictures and self._image_token:
                for number, piece in enumerate(self._placeholders.split(text)):
                    if number:
                        yield ImageSpan(placed)
                        placed += 1
                    if piece:
                        yield TextSpan(piece, special=True)
            else:
                yield TextSpan(text, special=author == sandbox.TEMPLATE)

    def _content(self, role: str, pieces: Sequence[Piece], as_string: bool) -> str | list[dict[str, str]]:
        """Return content in the request's form if the template accepts it, else in the form that it accepts."""
        # Templates expect results of tools as strings.
        strings, parts = self._accepts.get(role, (True, role != "tool"))
        has_picture = any(isinstance(piece, int) for piece in pieces)
        if has_picture and not self._places_pictures:
            pieces, has_picture, as_string = (flat(pieces),), False, True
        if not has_picture and role in self._first_part_only:
            pieces = (flat(pieces),)
        if not has_picture and (as_string if strings == parts else strings):
            return flat(pieces)
        return [self._entry(piece) for piece in pieces]

    def _entry(self, piece: Piece) -> dict[str, str]:
        """Return one entry of a list of content."""
        if isinstance(piece, VideoIndex):
            return {"type": "video"} if self.places_videos else {"type": "text", "text": flat((piece,))}
        return {"type": "image"} if isinstance(piece, int) else {"type": "text", "text": piece}

    def _probe_forms(self, role: str) -> tuple[bool, bool]:
        return self._probe(role, string=True), self._probe(role, string=False)

    def _probe(self, role: str, *, string: bool, words: Sequence[str] = ("pocket", "vlm")) -> bool:
        """Return whether content of this form reaches the prompt from a message of this role.

        By default a list has two parts, because some templates read only the first.
        """
        words = [Traced(word) for word in words]
        message = {"role": role, "content": flat(words) if string else text_parts(words)}
        question = {"role": "user", "content": "?" if role == "user" or self._accepts["user"][0] else text_parts("?")}
        before = [question] if role == "assistant" else []
        after = [question] if role != "user" else []
        try:
            user_text = _user_text(self._spans(self._run([*before, message, *after]), find_pictures=False))
        except Exception:  # a template may raise anything
            return False
        # A template for strings may write out the list itself, in Python's notation.
        return all(word in user_text for word in words) and "type" not in user_text

    def _probe_late_system(self) -> bool:
        """Return False for a template that has no turn of the system, but names one if the text comes late."""
        word = Traced("pocketvlm")
        system, question, answer = (
            {"role": role, "content": self._content(role, (text,), True)}
            for role, text in (("system", word), ("user", "?"), ("assistant", "!"))
        )
        names = []
        for messages in ([system, question], [question, answer, system, question], [question, system, question]):
            with suppress(Exception):  # a template may raise anything
                before, _, _ = self._run(messages).partition(word)
                names.append("system" in before.casefold())
        return not names or names[0] or not any(names)

    def _probe_pictures(self, image_token: str | None, video_token: str | None) -> None:
        self._placeholders, self.places_videos = re.compile(re.escape(image_token or "")), False
        self._places_pictures = bool(image_token) and self._probe_picture("image")
        if self._places_pictures and video_token:
            pictures = self._placeholders
            self._placeholders = re.compile(f"{pictures.pattern}|{re.escape(video_token)}")
            self.places_videos = self._probe_picture("video")
            self._placeholders = self._placeholders if self.places_videos else pictures

    def _probe_picture(self, kind: Literal["image", "video"]) -> bool:
        """Return whether the template writes its placeholder once for one picture or video, and the text around it."""
        words = [Traced("pocket"), Traced("vlm")]
        content = [*text_parts(words[:1]), {"type": kind}, *text_parts(words[1:])]
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


def with_opening(spans: Sequence[Span], tokens: Collection[str]) -> tuple[Span, ...]:
    """Do the same as `isolate_control_tokens`, and mark the spans that open the answer, from a control token on."""
    last = spans[-1] if spans else None
    if not isinstance(last, TextSpan) or not last.special:
        return isolate_control_tokens(spans, tokens)
    pieces = isolate_control_tokens((last,), tokens)
    start = next((number for number, piece in enumerate(pieces) if piece.special), len(pieces))
    opening = (replace(piece, opening=True) for piece in pieces[start:])
    return (*isolate_control_tokens((*spans[:-1], *pieces[:start]), tokens), *opening)


def joined(pieces: Iterable[TextSpan | T]) -> Iterator[TextSpan | T]:
    """Join adjacent texts of one kind, drop empty ones, and yield everything else unchanged."""
    text: TextSpan | None = None
    for piece in pieces:
        if isinstance(piece, TextSpan) and text is not None and _alike(text, piece):
            text = replace(text, text=text.text + piece.text)
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


def _alike(one: TextSpan, other: TextSpan) -> bool:
    return (one.special, one.opening) == (other.special, other.opening)


def _user_text(spans: Iterable[Span]) -> str:
    return "".join(span.text for span in spans if isinstance(span, TextSpan) and not span.special)
