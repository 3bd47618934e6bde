"""How a model writes tool calls, detected by having its chat template write some.

Most templates put literal text around a function's name and its arguments as JSON: `<tool_call>` (Hermes),
`[TOOL_CALLS]`, bare JSON (Llama 3), `<function=...>` (Functionary), and others. This text is read back from
probes, so no list of models is needed. Templates that write arguments in a notation of their own are not supported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from pocketvlm.errors import PocketVLMError
from pocketvlm.messages import ChatRequest
from pocketvlm.templates.prompt import ChatTemplate, TextSpan

HOLE = "\0"  # in the texts of a format: stands for an id or a number, which differs from call to call
NAME = r"[a-zA-Z0-9_.-]{1,64}"
_ID = r"[a-zA-Z0-9_-]{1,64}"
_TAG = re.compile(r"<[^<>\s=]{1,40}[>=]|\[[A-Z_]{3,40}\]")


@dataclass(frozen=True)
class ToolCallFormat:
    """Calls are `opening` NAME `middle` ARGUMENTS, for each further call `gap` NAME `middle` ARGUMENTS, and `closing`.

    `mark` is the part of `opening` by which a call is recognized: `anywhere`, or only at the beginning of the answer.
    `gap` is None where an answer can have one call only. `controls` maps the control tokens in these texts to their
    ids. The last three fields say how the template takes earlier calls: with arguments as JSON text, without content,
    with ids of nine letters and digits.
    """

    opening: str
    middle: str
    gap: str | None
    closing: str
    mark: str
    anywhere: bool = True
    controls: Mapping[str, int] = field(default_factory=dict)
    text_arguments: bool = False
    no_content: bool = False
    short_ids: bool = False

    def pattern(self, text: str, names: Collection[str] = ()) -> str:
        """Return a regular expression for one of the texts, followed by one of the names (group 1) and `middle`."""
        pattern = re.escape(text) + f"({_any_of(names) if names else NAME})" + re.escape(self.middle)
        return pattern.replace(re.escape(HOLE), _ID)

    def rule(self, text: str) -> str:
        """Return one of the texts in llguidance's Lark."""
        parts = re.split(f"({_any_of([HOLE, *self.controls])})", text)
        return " ".join(
            f"/{_ID}/" if part == HOLE else f"<[{self.controls[part]}]>" if part in self.controls else _quote(part)
            for part in parts
            if part
        )


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# For models whose template has no format of its own; the prompt describes it.
HERMES = ToolCallFormat(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    gap='}\n</tool_call>\n<tool_call>\n{"name": "',
    closing="}\n</tool_call>",
    mark="<tool_call>",
)

# The parts of the probes.
_QUESTION = {"role": "user", "content": "?"}
_ANSWER = {"role": "assistant", "content": "\u00a7"}  # begins like no call
_NAMES = ("pocket_one", "pocket_two", "pocket_three")
_IDS = ("pockcall1", "pockcall2", "pockcall3")
_RESULT = "pocket result"
_LONG_ID = "call_0123456789abcdef01234567"  # the form of the ids that pocketvlm makes
_ARGUMENTS = {"pocket": "vlm"}
_WRITTEN_ARGUMENTS = re.compile(r'\{\s*"pocket"\s*:\s*"vlm"\s*\}')
_PARAMETERS = {"type": "object", "properties": {"pocket": {"type": "string", "description": "vlm"}}, "required": []}
_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "vlm", "parameters": _PARAMETERS}} for name in _NAMES
]


def detect_tool_call_format(
    template: ChatTemplate, controls: Mapping[str, int], ends: Collection[str]
) -> ToolCallFormat | None:
    """Return the format of a template's calls.

    None for a template that leaves out tools, calls or results, or that writes calls in an unsupported form. `controls`
    maps the vocabulary's control tokens to their ids, `ends` are the tokens that end an answer.

    Raises ModelError for a template that does too much.
    """
    with template.probes():
        for text_arguments in (False, True):
            for no_content in (False, True):
                with suppress(PocketVLMError):
                    return _Probe(template, controls, ends, text_arguments, no_content).detect()
    return None


class _Probe:
    """Renders conversations with calls, and reads the texts around names and arguments back."""

    def __init__(
        self,
        template: ChatTemplate,
        controls: Mapping[str, int],
        ends: Collection[str],
        text_arguments: bool,
        no_content: bool,
    ) -> None:
        self._template, self._controls, self._ends = template, controls, ends
        self._text_arguments, self._no_content = text_arguments, no_content

    def detect(self) -> ToolCallFormat | None:
        """Return the format, if it is a supported one.

        Raises PocketVLMError where the template refuses the probes, or leaves out a part of them.
        """
        self._check_completeness()
        if not (texts := self._texts_around(1)):
            return None
        opening, middle, closing = texts
        gap = None
        with suppress(PocketVLMError, ValueError):
            # Of three calls: first, middle, gap, middle, gap, middle, last.
            first, *between, last = self._texts_around(3)
            if between[0::2] != between[:1] * 3 or between[1] != between[3]:  # the template numbers calls
                first, last, opening, middle, closing, *between = (
                    re.sub(r"\d+", HOLE, text) for text in (first, last, opening, middle, closing, *between)
                )
            if (first, last) == (opening, closing) and between[0::2] == [middle] * 3 and between[1] == between[3]:
                gap = between[1]
        return self._build(opening, middle, gap, closing)

    def _build(self, opening: str, middle: str, gap: str | None, closing: str) -> ToolCallFormat | None:
        """Return the format with these texts; None where a call could not be recognized, or not be split again."""
        opening = opening.lstrip()
        if gap is not None and self._ends_answer(gap):
            gap = None
        if not middle or middle[0] == HOLE or re.match(NAME, middle) or any(name in middle for name in _NAMES):
            return None
        if self._ends_answer(opening + middle) or any(text.endswith(HOLE) for text in (opening, middle, gap or "")):
            return None
        atoms = self._atoms(opening)
        has_tag = bool(atoms) and len(atoms[0]) > 1
        if not has_tag and not opening.startswith(("{", "[")):
            return None  # the opening could be ordinary words
        written = opening + middle + (gap or "") + closing
        return ToolCallFormat(
            opening,
            middle,
            gap,
            closing,
            mark=atoms[0] if has_tag else opening.partition(HOLE)[0],
            anywhere=has_tag,
            controls={text: token for text, token in self._controls.items() if text in written},
            short_ids=not self._accepts(_LONG_ID),
            text_arguments=self._text_arguments,
            no_content=self._no_content,
        )

    def _texts_around(self, count: int) -> list[str]:
        """Return the texts before, between and behind the names and arguments of `count` calls.

        [] where the arguments are not JSON.
        """
        calls = self._atoms(self._render(_turn(_IDS[:count])))
        # A conversation without calls shows where the turn with calls begins.
        others = self._atoms(self._render([_ANSWER], prompt=False)), self._atoms(self._render([]))
        text = "".join(calls[max(_common_length(other, calls) for other in others) :])
        for call_id in _IDS:
            text = text.replace(call_id, HOLE)
        texts: list[str] = []
        for name in _NAMES[:count]:
            before, separator, text = text.partition(name)
            if not separator:
                raise PocketVLMError("leaves out calls")
            if (arguments := _WRITTEN_ARGUMENTS.search(text)) is None:
                return []
            texts += [before, text[: arguments.start()]]
            text = text[arguments.end() :]
        closing = "".join(takewhile(lambda atom: atom not in self._ends, self._atoms(text)))
        return [] if _RESULT in closing else [*texts, closing]

    def _check_completeness(self) -> None:
        """Raise PocketVLMError where the template leaves out tools or results."""
        with_tools = self._render([])
        with_result = self._render(_turn(_IDS[:1]))
        if not all(name in with_tools for name in _NAMES) or _RESULT not in with_result:
            raise PocketVLMError("leaves out tools or results")

    def _accepts(self, call_id: str) -> bool:
        try:
            self._render(_turn([call_id]))
        except PocketVLMError:
            return False
        return True

    def _ends_answer(self, text: str) -> bool:
        return any(atom in self._ends for atom in self._atoms(text))

    def _atoms(self, text: str) -> list[str]:
        """Split a text into control tokens, tags, and single characters."""
        controls = _any_of([control for control in self._controls if control in text])
        return re.findall(f"{controls}|{_TAG.pattern}|(?s:.)", text)

    def _render(self, messages: list[dict[str, Any]], *, prompt: bool = True) -> str:
        request = ChatRequest.parse([_QUESTION, *messages])
        spans = self._template.render(
            request.messages,
            tools=_TOOLS,
            text_arguments=self._text_arguments,
            no_content=self._no_content,
            add_generation_prompt=prompt,
        )
        return "".join(span.text for span in spans if isinstance(span, TextSpan))


def _turn(ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return calls with these ids, and their results."""
    calls, results = [], []
    for call_id, name in zip(ids, _NAMES, strict=False):
        calls.append({"type": "function", "id": call_id, "function": {"name": name, "arguments": _ARGUMENTS}})
        results.append({"role": "tool", "content": _RESULT, "tool_call_id": call_id, "name": name})
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _any_of(texts: Collection[str]) -> str:
    """Return a regular expression that matches the longest of the texts; nothing where there are none."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"
