"""How a model writes tool calls, found by having its chat template write some.

Most templates put literal text around a function's name and its arguments as JSON: `<tool_call>` (Hermes),
`[TOOL_CALLS]`, bare JSON (Llama 3), `<function=...>` (Functionary), and others. That text is read back from
probes, so no list of models is needed. A template that writes arguments in a notation of its own has no form here.
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

HOLE = "\0"  # in a form's texts: an id or a number, which differs from call to call
NAME = r"[a-zA-Z0-9_.-]{1,64}"
_ID = r"[a-zA-Z0-9_-]{1,64}"
_TAG = re.compile(r"<[^<>\s=]{1,40}[>=]|\[[A-Z_]{3,40}\]")


@dataclass(frozen=True)
class ToolCallFormat:
    """`opening` NAME `middle` ARGUMENTS; for each further call `gap` NAME `middle` ARGUMENTS; `closing`.

    `mark` is the part of `opening` that tells a call; `anywhere`: also behind other text. `gap` is None where there can
    be one call only. `controls` are the control tokens within these texts, and their ids. The last three say how the
    template wants earlier calls: arguments as a JSON text, no content beside them, ids of nine letters and digits.
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

    def pattern(self, text: str) -> str:
        """A regular expression for one of the texts, with the name and `middle` behind it."""
        whole = re.escape(text) + f"({NAME})" + re.escape(self.middle)
        return whole.replace(re.escape(HOLE), _ID)

    def rule(self, text: str) -> str:
        """One of the texts in llguidance's Lark."""
        parts = re.split(f"({_any_of([HOLE, *self.controls])})", text)
        return " ".join(
            f"/{_ID}/" if part == HOLE else f"<[{self.controls[part]}]>" if part in self.controls else quoted(part)
            for part in parts
            if part
        )


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# What a template that has no form of its own is told to write.
HERMES = ToolCallFormat(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    gap='}\n</tool_call>\n<tool_call>\n{"name": "',
    closing="}\n</tool_call>",
    mark="<tool_call>",
)

_QUESTION = {"role": "user", "content": "?"}
_WORDS = "\u00a7"  # begins no call
_SAYS = {"role": "assistant", "content": _WORDS}
_NAMES = ("pocket_one", "pocket_two", "pocket_three")
_IDS = ("pockcall1", "pockcall2", "pockcall3")
_RESULT = "pocket result"
_LONG_ID = "call_0123456789abcdef01234567"  # as we make them
_ARGUMENTS = {"pocket": "vlm"}
_FOUND = re.compile(r'\{\s*"pocket"\s*:\s*"vlm"\s*\}')
_PARAMETERS = {"type": "object", "properties": {"pocket": {"type": "string", "description": "vlm"}}, "required": []}
_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "vlm", "parameters": _PARAMETERS}} for name in _NAMES
]


def detect_tool_call_format(
    template: ChatTemplate, controls: Mapping[str, int], ends: Collection[str]
) -> ToolCallFormat | None:
    """None for a template that does not show tools, calls and results, or writes calls in no form that is known here.

    `controls` are the vocabulary's control tokens and their ids, `ends` those that end an answer.
    """
    for text_arguments in (False, True):
        for no_content in (False, True):
            with suppress(PocketVLMError):
                return _Probe(template, controls, ends, text_arguments, no_content).form()
    return None


class _Probe:
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

    def form(self) -> ToolCallFormat | None:
        """Raises PocketVLMError where the template refuses the probes, or leaves something of them out."""
        self._check_what_is_shown()
        if not (around := self._around(1)):
            return None
        opening, middle, closing = around
        gap = None
        with suppress(PocketVLMError, ValueError):
            first, *rest, last = self._around(3)
            if rest[0::2] != rest[:1] * 3 or rest[1] != rest[3]:  # calls that are numbered
                first, last, opening, middle, closing, *rest = (
                    re.sub(r"\d+", HOLE, text) for text in (first, last, opening, middle, closing, *rest)
                )
            if (first, last) == (opening, closing) and rest[0::2] == [middle] * 3 and rest[1] == rest[3]:
                gap = rest[1]
        return self._checked(opening, middle, gap, closing)

    def _checked(self, opening: str, middle: str, gap: str | None, closing: str) -> ToolCallFormat | None:
        opening = opening.lstrip()
        if gap is not None and self._ends_in(gap):
            gap = None
        if not middle or middle[0] == HOLE or re.match(NAME, middle) or any(name in middle for name in _NAMES):
            return None
        if self._ends_in(opening + middle) or any(text.endswith(HOLE) for text in (opening, middle, gap or "")):
            return None
        atoms = self._atoms(opening)
        marked = bool(atoms) and len(atoms[0]) > 1
        if not marked and not opening.startswith(("{", "[")):
            return None  # nothing that could not be the answer's own words
        written = opening + middle + (gap or "") + closing
        return ToolCallFormat(
            opening,
            middle,
            gap,
            closing,
            mark=atoms[0] if marked else opening.partition(HOLE)[0],
            anywhere=marked,
            controls={text: token for text, token in self._controls.items() if text in written},
            short_ids=not self._takes(_LONG_ID),
            text_arguments=self._text_arguments,
            no_content=self._no_content,
        )

    def _around(self, count: int) -> list[str]:
        """What stands before, between and behind the names and arguments of so many calls; [] if those are no JSON."""
        called = self._atoms(self._written(_turn(_IDS[:count])))
        others = self._atoms(self._written([_SAYS], asked=False)), self._atoms(self._written([]))
        text = "".join(called[max(_alike(other, called) for other in others) :])
        for call_id in _IDS:
            text = text.replace(call_id, HOLE)
        found: list[str] = []
        for name in _NAMES[:count]:
            before, named, text = text.partition(name)
            if not named:
                raise PocketVLMError("leaves out calls")
            if (arguments := _FOUND.search(text)) is None:
                return []
            found += [before, text[: arguments.start()]]
            text = text[arguments.end() :]
        closing = "".join(takewhile(lambda atom: atom not in self._ends, self._atoms(text)))
        return [] if _RESULT in closing else [*found, closing]

    def _check_what_is_shown(self) -> None:
        shown = self._written([])
        after = self._written(_turn(_IDS[:1]))
        if not all(name in shown for name in _NAMES) or _RESULT not in after:
            raise PocketVLMError("leaves out tools or results")

    def _takes(self, call_id: str) -> bool:
        try:
            self._written(_turn([call_id]))
        except PocketVLMError:
            return False
        return True

    def _ends_in(self, text: str) -> bool:
        return any(atom in self._ends for atom in self._atoms(text))

    def _atoms(self, text: str) -> list[str]:
        """Control tokens and tags, and all else by the character."""
        controls = _any_of([control for control in self._controls if control in text])
        return re.findall(f"{controls}|{_TAG.pattern}|(?s:.)", text)

    def _written(self, messages: list[dict[str, Any]], *, asked: bool = True) -> str:
        request = ChatRequest.parse([_QUESTION, *messages])
        spans = self._template.render(
            request.messages,
            tools=_TOOLS,
            text_arguments=self._text_arguments,
            no_content=self._no_content,
            add_generation_prompt=asked,
        )
        return "".join(span.text for span in spans if isinstance(span, TextSpan))


def _turn(ids: Sequence[str]) -> list[dict[str, Any]]:
    """Calls with these ids, and their results."""
    calls, results = [], []
    for call_id, name in zip(ids, _NAMES, strict=False):
        calls.append({"type": "function", "id": call_id, "function": {"name": name, "arguments": _ARGUMENTS}})
        results.append({"role": "tool", "content": _RESULT, "tool_call_id": call_id, "name": name})
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


def _alike(one: Sequence[str], two: Sequence[str]) -> int:
    """How many they have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def _any_of(texts: Collection[str]) -> str:
    """A regular expression; of texts that begin alike the longest. It matches nothing where there are none."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"
