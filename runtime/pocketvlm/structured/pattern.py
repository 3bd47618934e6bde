r"""Regular expressions of JSON Schema -> those of the grammar's compiler: Rust's, without look-around. Pure.

Schemas are written for ECMAScript and for Python, which differ in details: what `\d`, `\w`, `\s` and `.` stand for. A
translated pattern accepts only strings that both accept. In the compiler's syntax other things differ: `[` and `&&` in
a class, escapes, `{`.

No class contains U+0001. llguidance 1.9 takes one that has all control characters for one that has `"` and `\`, too;
and an answer can contain no control character that has no short escape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

MAX_GROUPS = 50  # within each other: the compiler recurses
MAX_CONDITIONS = 8  # that look ahead: the compiler's work doubles with each
_NEVER = "\\x{1}"
_IGNORE_CASE = "(?i)"
_BLANK = "\\t-\\r \\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
# What is certainly in \d, \w, \s, and what may be in it.
_CERTAIN = {"d": "0-9", "w": "0-9A-Za-z_", "s": _BLANK}
_POSSIBLE = {"d": "\\p{Nd}", "w": "\\p{Alphabetic}\\p{M}\\p{N}\\p{Pc}", "s": _BLANK + "\\x{1c}-\\x{1f}\\x{85}\\x{feff}"}
_DECIMAL = "^(?!^[-+.]*$)"  # pydantic's: not without a digit, as nothing else follows
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_PROPERTY = re.compile(r"\{[A-Za-z_=]+\}")
_PYTHON_ANCHOR = re.compile("[AZz]")
_LETTER = re.compile("[A-Za-z]")
_NAME = re.compile(r"\(\?P?<([A-Za-z_$][\w$]*)>")
_FLAGS = re.compile(r"\(\?([a-z]+)([:)])")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_SURROGATES = re.compile(r"u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


@dataclass
class _Alternation:
    options: list[list[_Item]] = field(default_factory=lambda: [[]])
    opening: str = "(?:"


@dataclass
class _Item:
    """`content` is the text of a class or character, an anchor, or a group; `count` its quantifier."""

    content: str | _Alternation
    count: str = ""


def translate(pattern: str) -> list[str]:
    """Return patterns for the compiler, all of which must match: the pattern, and what it looks ahead to at its start.

    Raises ValueError with what the compiler cannot do.
    """
    conditions: list[str] = []
    parser = _Parser(pattern)
    for condition in parser.look_ahead():
        conditions.append("^" + "".join(_written(condition, at_start=True, at_end=True)))
        if len(conditions) > MAX_CONDITIONS:
            raise ValueError(f"more than {MAX_CONDITIONS} conditions look ahead")
    if pattern.startswith(_DECIMAL):
        parser = _Parser("^" + pattern.removeprefix(_DECIMAL))
        conditions.append("[0-9]")
    alternation = parser.parse()
    if conditions and len(alternation.options) > 1:
        raise ValueError("look-around in one of several alternatives is not supported")
    return ["".join(_written(alternation, at_start=True, at_end=True)), *conditions]


def _written(alternation: _Alternation, *, at_start: bool, at_end: bool) -> Iterator[str]:
    """Yield the pieces of a pattern. `at_start`: nothing can stand before it; `at_end`: nothing behind it."""
    for i, items in enumerate(alternation.options):
        if i:
            yield "|"
        start = sum(1 for _ in takewhile(lambda item: item.content in ("^", _IGNORE_CASE), items))
        end = len(items) - sum(1 for _ in takewhile(lambda item: item.content == "$", reversed(items)))
        for j, item in enumerate(items):
            first, last = at_start and j <= start, at_end and j >= end - 1
            if isinstance(item.content, str):
                if (item.content == "^" and not first) or (item.content == "$" and not last):
                    raise ValueError(f"{item.content} is supported only at the ends of a pattern")
                yield item.content
            else:
                yield item.content.opening
                yield from _written(item.content, at_start=first and not item.count, at_end=last and not item.count)
                yield ")"
            yield item.count


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._dot_all = False

    def look_ahead(self) -> Iterator[_Alternation]:
        """Parse `(?=...)` after the anchor of a pattern, as in rules for passwords, and leave the anchor in place."""
        if self._text.startswith("^(?="):
            self._at = 1
            while self._text.startswith("(?=", self._at):
                self._at += 3
                yield _Alternation([[_Item(self.parse(1))]])
            self._text, self._at = "^" + self._text[self._at :], 0

    def parse(self, depth: int = 0, opening: str = "(?:") -> _Alternation:
        """Parse up to the end, or with a `depth` up to the end of the group."""
        if depth > MAX_GROUPS:
            raise ValueError("groups nest too deep")
        alternation = _Alternation(opening=opening)
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == ")" and depth:
                return alternation
            if char == ")":
                raise ValueError("unopened group")
            if char == "|":
                alternation.options.append([])
                continue
            items = alternation.options[-1]
            if char == "(":
                item = self._group(depth)
                if item is not None:
                    items.append(item)
            elif count := self._count(char):
                if not items or items[-1].count or items[-1].content in ("^", "$", _IGNORE_CASE):
                    raise ValueError(f"nothing to repeat before {count}")
                items[-1].count = count
            else:
                items.append(_Item(self._single(char)))
        if depth:
            raise ValueError("unclosed group")
        return alternation

    def _count(self, char: str) -> str | None:
        """Return the quantifier that begins with `char`, if it is one. Whether it is lazy changes no match."""
        count: str | None = char if char in "*+?" else None
        if char == "{":
            if match := _COUNT.match(self._text, self._at - 1):
                self._at = match.end()
                low, high = match[1], match[3]
                if high and int(high) < int(low):
                    raise ValueError(f"{match[0]} has a higher minimum than maximum")
                count = match[0]
            elif self._text.startswith(",", self._at):
                raise ValueError("{, has different meanings in different languages")
        if count and self._text.startswith("?", self._at):
            self._at += 1
        elif count and self._text.startswith("+", self._at):
            raise ValueError("possessive quantifiers are not supported")
        return count

    def _group(self, depth: int) -> _Item | None:
        start, dot_all = self._at - 1, self._dot_all
        opening = "(?:"
        if match := _NAME.match(self._text, start):
            self._at = match.end()
        elif match := _FLAGS.match(self._text, start):
            if unknown := set(match[1]) - {"i", "s"}:
                raise ValueError(f"the flag {min(unknown)} is not supported")
            self._at = match.end()
            self._dot_all |= "s" in match[1]
            if match[2] == ")":
                if start:
                    raise ValueError("flags for the whole pattern are supported only at its beginning")
                return _Item(_IGNORE_CASE) if "i" in match[1] else None
            opening = "(?i:" if "i" in match[1] else "(?:"
        elif self._text.startswith("?:", self._at):
            self._at += 2
        elif self._text.startswith("?", self._at):
            raise ValueError("look-around, backreferences and other extensions are not supported")
        group = self.parse(depth + 1, opening)
        self._dot_all = dot_all
        return _Item(group)

    def _single(self, char: str) -> str:
        """Return what stands for one character, or for an end."""
        if char in "^$":
            return char
        if char == ".":
            return f"[^{_NEVER}]" if self._dot_all else f"[^\\n\\r\\x{{2028}}\\x{{2029}}{_NEVER}]"
        if char == "[":
            return self._class()
        if char != "\\":
            return _literal(char)
        if self._text.startswith(("b", "B"), self._at):
            raise ValueError("word boundaries are not supported")
        if match := _PYTHON_ANCHOR.match(self._text, self._at):  # of Python
            self._at += 1
            return "^" if match[0] == "A" else "$"
        escaped, is_set = self._escape(negated=False)
        return f"[[{escaped}]&&[^{_NEVER}]]" if is_set else _literal(escaped)

    def _class(self) -> str:
        negated = self._text.startswith("^", self._at)
        self._at += negated
        if self._text.startswith("]", self._at):
            raise ValueError("[] has different meanings in different languages")
        written: list[str] = []
        while not self._text.startswith("]", self._at):
            low, is_set = self._member(negated)
            if is_set or self._text[self._at : self._at + 1] != "-" or self._text[self._at + 1 : self._at + 2] == "]":
                written.append(low if is_set else _literal(low))
                continue
            self._at += 1
            high, is_set = self._member(negated)
            if is_set:
                written += [_literal(low), _literal("-"), high]
                continue
            if high < low:
                raise ValueError(f"the range {low}-{high} is empty")
            written.append(f"{_literal(low)}-{_literal(high)}")
        self._at += 1
        return f"[[{'^' * negated}{''.join(written)}]&&[^{_NEVER}]]"

    def _member(self, negated: bool) -> tuple[str, bool]:
        """Return a character of a class, or a set for within a class, and whether it is a set."""
        if self._at >= len(self._text):
            raise ValueError("unclosed class")
        char = self._text[self._at]
        self._at += 1
        if char != "\\":
            return char, False
        if self._text.startswith("b", self._at):
            self._at += 1
            return "\b", False
        return self._escape(negated=negated)

    def _escape(self, *, negated: bool) -> tuple[str, bool]:
        """Return the character behind a backslash, or a set for within a class, and whether it is a set.

        In a class that is `negated`, a set contains all that may be in it, otherwise what certainly is.
        """
        if self._at >= len(self._text):
            raise ValueError("ends with a backslash")
        if match := _SURROGATES.match(self._text, self._at):
            self._at = match.end()
            return bytes.fromhex(match[1] + match[2]).decode("utf-16-be"), False
        if match := _HEX.match(self._text, self._at):
            self._at = match.end()
            code = int(match[1] or match[2] or match[3], 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise ValueError(f"U+{code:04X} is not a character")
            return chr(code), False
        char = self._text[self._at]
        self._at += 1
        if char in _CONTROLS:
            return _CONTROLS[char], False
        if char.lower() in _CERTAIN:
            if char.islower():
                return (_POSSIBLE if negated else _CERTAIN)[char], True
            return f"[^{(_CERTAIN if negated else _POSSIBLE)[char.lower()]}]", True
        if char in "pP" and (match := _PROPERTY.match(self._text, self._at)):
            self._at = match.end()
            return f"\\{char}{match[0]}", True
        if char == "0" and not self._text[self._at : self._at + 1].isdigit():
            return "\0", False
        if char == "c" and (match := _LETTER.match(self._text, self._at)):
            self._at += 1
            return chr(ord(match[0]) % 32), False
        if char.isdigit() or char == "k":
            raise ValueError("backreferences are not supported")
        if char.isalpha() and char.isascii():
            raise ValueError(f"the escape \\{char} has different meanings in different languages")
        return char, False


def _literal(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"
