"""The text of an answer -> content, thinking and tool calls, as it comes. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pocketvlm.structured.detokenizer import Detokenizer
from pocketvlm.structured.tool_call_format import ToolCallFormat
from pocketvlm.templates.thoughts import THINK, THINK_END


@dataclass(frozen=True)
class OutputPiece:
    """A piece of content or thinking, or of the tool call number `index`, from 0.

    A piece `call` begins a call, and its text is the function's name; pieces `arguments` follow it.
    """

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str
    index: int = 0


class OutputParser:
    """Parses the bytes of token after token. Stop strings count in content only.

    `call_format`: how calls are written, if there can be any, and `names`: of which functions. `thinks`: the answer may
    begin with a thought. `thinking`: the prompt ends within one. `continues`: the prompt has the beginning of the
    content, or of the thought. `controls`: ids of control tokens that are content, by their text.
    """

    def __init__(
        self,
        stops: Sequence[str],
        *,
        call_format: ToolCallFormat | None,
        thinks: bool,
        thinking: bool,
        continues: bool = False,
        names: Collection[str] = (),
        controls: Mapping[str, int] | None = None,
    ) -> None:
        self._bytes = Detokenizer()
        self._content = Detokenizer(stops)
        self._call_format = call_format
        self._controls = {token: text.encode() for text, token in (controls or {}).items()}
        if call_format is not None:
            self._controls |= {token: text.encode() for text, token in call_format.controls.items()}
            opening, gap = call_format.opening.removeprefix(call_format.mark), call_format.gap
            self._first_head = re.compile(call_format.pattern(opening, names))
            self._next_head = None if gap is None else re.compile(call_format.pattern(gap, names))
        # `head` is the text from the mark of a call to its arguments, `tail` the text behind its arguments.
        self._state: Literal["start", "reasoning", "content", "head", "arguments", "tail"] = (
            "reasoning" if thinking else "start" if thinks else "content"
        )
        self._held = ""  # text that is not parsed yet
        self._visible = continues  # the content, or the thought, has begun with something else than white space
        # Like it for the content alone, also where it is held back for a stop string.
        self._has_content = continues and not thinking
        self._after_thought = False  # white space right behind a thought is not content
        self.calls = 0
        self._depth = 0  # of brackets in the arguments
        self._in_string = self._escaped = False  # in the arguments

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._content.stopped

    @property
    def stop(self) -> str | None:
        """The stop string that was met."""
        return self._content.stop

    @property
    def in_thought(self) -> bool:
        """Whether the next token belongs to a thought, its end included."""
        return self._state == "reasoning"

    def push(self, data: bytes, token: int = -1) -> list[OutputPiece]:
        """Return the pieces that are complete now. `token` identifies control tokens, which have no bytes."""
        return self._parse(self._bytes.push(data or self._controls.get(token, b"")), last=False)

    def finish(self) -> list[OutputPiece]:
        """Return what was held back, because nothing follows."""
        pieces = self._parse(self._bytes.finish(), last=True)
        if self._state in ("content", "start"):
            pieces += self._content_pieces(self._content.finish())
        return pieces

    def _parse(self, text: str, *, last: bool) -> list[OutputPiece]:
        self._held += text
        pieces: list[OutputPiece] = []
        state = ""
        while state != self._state and not self.stopped:  # a change of state may have left text for the next state
            state = self._state
            pieces += self._advance(last)
        return pieces

    def _advance(self, last: bool) -> Iterator[OutputPiece]:
        """Parse held text in the present state. `last`: no more text follows."""
        match self._state:
            case "start":
                self._look_for_thought(last)
            case "reasoning":
                yield from self._parse_reasoning(last)
            case "content":
                yield from self._parse_content(last)
            case "head":
                yield from self._begin_call(self._first_head)
            case "arguments":
                yield from self._parse_arguments()
            case "tail":
                if self._next_head is not None:
                    yield from self._begin_call(self._next_head)

    def _look_for_thought(self, last: bool) -> None:
        beginning = self._held.lstrip()
        if beginning.startswith(THINK):
            self._held, self._state = beginning[len(THINK) :], "reasoning"
        elif last or not THINK.startswith(beginning):
            self._state = "content"

    def _parse_reasoning(self, last: bool) -> Iterator[OutputPiece]:
        thought, ended = self._split_at(THINK_END, last)
        if ended:
            thought = thought.rstrip()
            self._state, self._after_thought = "content", True
        elif not last:  # white space at its end may stand before THINK_END
            stripped = thought.rstrip()
            thought, self._held = stripped, thought[len(stripped) :] + self._held
        if not self._visible:
            thought = thought.lstrip()
            self._visible = bool(thought)
        if ended:
            self._visible = False
        if thought:
            yield OutputPiece("reasoning", thought)

    def _parse_content(self, last: bool) -> Iterator[OutputPiece]:
        if self._after_thought:
            self._held = self._held.lstrip()
            self._after_thought = not self._held
        text, call_begins = self._split_at_call(last)
        self._has_content |= bool(text.strip())
        yield from self._content_pieces(self._content.push(text.encode()))
        if call_begins and not self.stopped:
            yield from self._content_pieces(self._content.finish())
            self._state = "head"

    def _split_at_call(self, last: bool) -> tuple[str, bool]:
        """Like `_split_at`, with the mark of a call, where a call may stand."""
        if self._call_format is not None and self._call_format.anywhere:
            return self._split_at(self._call_format.mark, last)
        if self._call_format is not None and not self._has_content:
            beginning = self._held.lstrip()
            if beginning.startswith(self._call_format.mark):
                self._held = beginning[len(self._call_format.mark) :]
                return "", True
            if not last and self._call_format.mark.startswith(beginning):
                return "", False
        text, self._held = self._held, ""
        return text, False

    def _begin_call(self, head: re.Pattern[str]) -> Iterator[OutputPiece]:
        """Begin a call once the text before its arguments is complete."""
        if match := head.match(self._held):
            self._held = self._held[match.end() :]
            self._state = "arguments"
            self._depth, self._in_string, self._escaped = 0, False, False
            self.calls += 1
            yield OutputPiece("call", match[1], self.calls - 1)

    def _parse_arguments(self) -> Iterator[OutputPiece]:
        if self._depth == 0:  # white space before the object
            self._held = self._held.lstrip()
        end = self._end_of_object()
        text = self._held[:end]
        self._held = "" if end is None else self._held[end:]
        if end is not None:
            self._state = "tail"
        if text:
            yield OutputPiece("arguments", text, self.calls - 1)

    def _content_pieces(self, text: str) -> Iterator[OutputPiece]:
        if not self._visible:  # where a template ends in "Assistant:", the answer begins with a space
            text = text.lstrip()
            self._visible = bool(text)
        if text:
            yield OutputPiece("content", text)

    def _split_at(self, mark: str, last: bool) -> tuple[str, bool]:
        """Take the text before `mark`, and whether the mark is there. The beginning of a possible mark stays held."""
        before, separator, after = self._held.partition(mark)
        if separator:
            self._held = after
            return before, True
        length = 0
        if not last:
            length = next((n for n in range(min(len(mark) - 1, len(before)), 0, -1) if before.endswith(mark[:n])), 0)
        cut = len(before) - length
        self._held = before[cut:]
        return before[:cut], False

    def _end_of_object(self) -> int | None:
        """Return where the JSON object ends in the held text; None where it goes on."""
        for index, character in enumerate(self._held):
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
                    return index + 1
        return None
