"""An answer's text -> content, thinking, tool calls, as it comes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pocketvlm.structured.detokenizer import Detokenizer
from pocketvlm.structured.tool_call_format import ToolCallFormat

THINK, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class OutputPiece:
    """`arguments` and `call` belong to call number `index`, from 0; `call` begins it, and its text is the name."""

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str
    index: int = 0


class OutputParser:
    """Takes one token's bytes after another. Stop strings count in content only.

    `form`: how calls are written, if there can be any. `thinks`: the answer may begin with a thought; `thinking`: it is
    in one already.
    """

    def __init__(self, stops: Sequence[str], *, form: ToolCallFormat | None, thinks: bool, thinking: bool) -> None:
        self._bytes = Detokenizer()
        self._content = Detokenizer(stops)
        self._form = form
        self._controls: dict[int, bytes] = {}
        if form is not None:
            self._controls = {token: text.encode() for text, token in form.controls.items()}
            self._first = re.compile(form.pattern(form.opening.removeprefix(form.mark)))
            self._next = re.compile(form.pattern(form.gap)) if form.gap is not None else None
        self._state: Literal["start", "reasoning", "content", "head", "arguments", "tail"] = (
            "reasoning" if thinking else "start" if thinks else "content"
        )
        self._held = ""
        self._begun = False  # content that is not white space, or a thought
        self._written = False  # content that is not white space, be it held back
        self._thought = False  # has just ended: the white space behind it is no content
        self.calls = 0
        self._depth = 0
        self._in_string = self._escaped = False

    @property
    def stopped(self) -> bool:
        return self._content.stopped

    def push(self, data: bytes, token: int = -1) -> list[OutputPiece]:
        """`token` tells control tokens, which have no bytes, where calls are written with them."""
        return self._read(self._bytes.push(data or self._controls.get(token, b"")), last=False)

    def finish(self) -> list[OutputPiece]:
        """What was held back, now that nothing follows."""
        found = self._read(self._bytes.finish(), last=True)
        if self._state == "content" or self._state == "start":
            found += self._said(self._content.finish())
        return found

    def _read(self, text: str, *, last: bool) -> list[OutputPiece]:
        self._held += text
        found: list[OutputPiece] = []
        state = ""
        while state != self._state and not self.stopped:  # each step that changes it may have left text to the next
            state = self._state
            found += getattr(self, f"_in_{state}")(last)
        return found

    def _in_start(self, last: bool) -> Iterator[OutputPiece]:
        begun = self._held.lstrip()
        if begun.startswith(THINK):
            self._held, self._state = begun[len(THINK) :], "reasoning"
        elif last or not THINK.startswith(begun):
            self._state = "content"
        yield from ()

    def _in_reasoning(self, last: bool) -> Iterator[OutputPiece]:
        thought, found = self._until(THINK_END, last)
        if found:
            thought = thought.rstrip()
            self._state, self._thought = "content", True
        elif not last:  # white space at its end may be before THINK_END
            kept = thought.rstrip()
            thought, self._held = kept, thought[len(kept) :] + self._held
        if not self._begun:
            thought = thought.lstrip()
            self._begun = bool(thought)
        if found:
            self._begun = False
        if thought:
            yield OutputPiece("reasoning", thought)

    def _in_content(self, last: bool) -> Iterator[OutputPiece]:
        if self._thought:
            self._held = self._held.lstrip()
            self._thought = not self._held
        text, found = self._before_call(last)
        self._written |= bool(text.strip())
        yield from self._said(self._content.push(text.encode()))
        if found and not self.stopped:
            yield from self._said(self._content.finish())
            self._state = "head"

    def _before_call(self, last: bool) -> tuple[str, bool]:
        """As `_until` does, with the mark of a call."""
        if self._form is not None and self._form.anywhere:
            return self._until(self._form.mark, last)
        if self._form is not None and not self._written:  # else it is no call
            begun = self._held.lstrip()
            if begun.startswith(self._form.mark):
                self._held = begun[len(self._form.mark) :]
                return "", True
            if not last and self._form.mark.startswith(begun):
                return "", False
        text, self._held = self._held, ""
        return text, False

    def _in_head(self, last: bool) -> Iterator[OutputPiece]:  # noqa: ARG002  # called as its siblings are
        yield from self._named(self._first)

    def _named(self, pattern: re.Pattern[str]) -> Iterator[OutputPiece]:
        """A call begins, if what stands before its arguments is there."""
        if match := pattern.match(self._held):
            self._held = self._held[match.end() :]
            self._state = "arguments"
            self._depth, self._in_string, self._escaped = 0, False, False
            self.calls += 1
            yield OutputPiece("call", match[1], self.calls - 1)

    def _in_arguments(self, last: bool) -> Iterator[OutputPiece]:  # noqa: ARG002  # called as its siblings are
        if self._depth == 0:  # white space before the object
            self._held = self._held.lstrip()
        end = self._end_of_object()
        text = self._held[:end]
        self._held = "" if end is None else self._held[end:]
        if end is not None:
            self._state = "tail"
        if text:
            yield OutputPiece("arguments", text, self.calls - 1)

    def _in_tail(self, last: bool) -> Iterator[OutputPiece]:  # noqa: ARG002  # called as its siblings are
        if self._next is not None:
            yield from self._named(self._next)

    def _said(self, text: str) -> Iterator[OutputPiece]:
        if not self._begun:  # templates that end in "Assistant:" make the model say the space
            text = text.lstrip()
            self._begun = bool(text)
        if text:
            yield OutputPiece("content", text)

    def _until(self, mark: str, last: bool) -> tuple[str, bool]:
        """The text before `mark`, and whether it is there; what may be its beginning stays held."""
        before, found, after = self._held.partition(mark)
        if found:
            self._held = after
            return before, True
        held = 0
        if not last:
            held = next((n for n in range(min(len(mark) - 1, len(before)), 0, -1) if before.endswith(mark[:n])), 0)
        cut = len(before) - held
        self._held = before[cut:]
        return before[:cut], False

    def _end_of_object(self) -> int | None:
        """How far the held text goes on with the object; None where it does not end there."""
        for at, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None
