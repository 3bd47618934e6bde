"""Grammars of places between marks, to which answers of `locate` are held: llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pocketvlm.regions.notation import Grammar

THOUSAND = "/0|[1-9][0-9]{0,2}|1000/"
BELOW_THOUSAND = "/0|[1-9][0-9]{0,2}/"
_LABEL = r"/[^<>\[\]\n]{1,80}/"
_MORE = 99  # places after the first


def mark(text: str, controls: Mapping[str, int]) -> str:
    """Return a mark as the model writes it: as a control token, or as text where the vocabulary has no such token."""
    return f"<[{controls[text]}]>" if text in controls else json.dumps(text, ensure_ascii=False)


def bracketed(opening: str, closing: str, number: str, label: tuple[str, str] | None = None) -> Grammar:
    """[[x1, y1, x2, y2], ...] between two marks, after a label between its own. There may be no place: []."""

    def grammar(controls: Mapping[str, int]) -> str:
        before = f"{mark(label[0], controls)} LABEL {mark(label[1], controls)} " if label else ""
        begin, end = mark(opening, controls), mark(closing, controls)
        lines = [
            f'body: {before}{begin} "[" (one (/, ?/ one){{0,{_MORE}}})? "]" {end}',
            'one: "[" NUMBER (/, ?/ NUMBER){3} "]"',
            f"NUMBER: {number}",
        ]
        return "\n".join([*lines, *([f"LABEL: {_LABEL}"] if label else [])])

    return grammar


def paired(box: tuple[str, str] | None, number: str, label: tuple[str, str] | None = None) -> Grammar:
    """(x1,y1),(x2,y2) for each place, between two marks and after a label between its own, or after a plain text."""

    def grammar(controls: Mapping[str, int]) -> str:
        before = f"{mark(label[0], controls)} LABEL {mark(label[1], controls)}" if label else "TEXT"
        opening, closing = (f"{mark(one, controls)} " for one in box) if box else ("", "")
        lines = [
            f"body: (one (SPACE one){{0,{_MORE}}})?",
            f'one: {before} {opening}pair "," pair {closing}',
            'pair: "(" NUMBER "," NUMBER ")"',
            f"NUMBER: {number}",
            "SPACE: /[ \\n]{0,2}/",
            f"LABEL: {_LABEL}" if label else r"TEXT: /[^<>()\[\]\n]{1,80}/",
        ]
        return "\n".join(lines)

    return grammar


def fractions(controls: Mapping[str, int]) -> str:  # noqa: ARG001  # the signature of all grammars
    """[x1, y1, x2, y2] with up to three decimals each, once or not at all."""
    return 'body: ("[" NUMBER (/, ?/ NUMBER){3} "]")?\nNUMBER: /0\\.[0-9]{1,3}|1\\.0{1,3}/'


def located(controls: Mapping[str, int]) -> str:
    """Four tokens such as <loc0123>, then a label; places are divided by semicolons."""
    places = " | ".join(mark(f"<loc{number:04}>", controls) for number in range(1024))
    return "\n".join(
        [f'body: (one (" ; " one){{0,{_MORE}}})?', "one: place{4} / ?/ LABEL", f"place: {places}", f"LABEL: {_LABEL}"]
    )
