"""The guard against answers that repeat themselves without end, and pages that only look like it."""

from __future__ import annotations

from itertools import count, islice

import pytest

from pocketvlm.reading.repetition import RepetitionGuard

LETTER = "Dear Ms Rivera,\nthank you for your order of 3 May. It left our house today.\n"


def read(text: str, size: int = 5) -> tuple[RepetitionGuard, int]:
    """Push `text` in pieces, as tokens come, and return the guard and how many characters it took."""
    guard = RepetitionGuard()
    for start in range(0, len(text), size):
        if guard.push(text[start : start + size]):
            return guard, start + size
    return guard, len(text)


def numbered(form: str, rows: int) -> str:
    return "".join(form.format(number) for number in islice(count(1), rows))


LOOPS = {
    "a word": LETTER + "the " * 3000,
    "a letter": LETTER + "." * 20_000,
    "a sentence": LETTER + "It left our house today. " * 400,
    "a line": LETTER + "It left our house today.\n" * 400,
    "a row": "| Item | Price |\n| --- | --- |\n" + "| 0.00 | 0.00 |\n" * 1000,
    "cells in a row": "<table><tr>" + "<td></td>" * 3000,
    "rows of HTML": "<table>" + "<tr><td>Total</td><td>0</td></tr>" * 1000,
    "OTSL": "<fcel>Total<fcel>0<nl>" * 1000,
    "a paragraph": LETTER + (LETTER + "We remain yours. " * 2 + "\n") * 100,
    "a page": "".join(
        f"{word} is the word of line {number}, which ends here.\n"
        for number, word in enumerate(
            ["apple", "pear", "plum", "fig", "quince", "lime", "melon", "grape", "peach", "berry"] * 3
        )
    )
    * 20,
    "a list that counts": LETTER + numbered("{}. See above.\n", 3000),
    "numbers in a line": "The values are " + numbered("{}, ", 5000),
    "Chinese": "检测并识别图片中的文字。" * 500,
}
PAGES = {
    "a letter": LETTER * 3,
    "a table of contents": "".join(f"Chapter {number} {'.' * 120} {7 * number}\n" for number in range(1, 60)),
    "a table of zeros": "| a | b | c | d | e | f |\n|---|---|---|---|---|---|\n" + "| 0 | 0 | 0 | 0 | 0 | 0 |\n" * 70,
    "an empty form": "<table>" + ("<tr>" + "<td></td>" * 6 + "</tr>\n") * 60 + "</table>",
    "a wide row": "<tr>" + "<td>0</td>" * 40 + "</tr>",
    "labels": "Rivera Printing\n12 Harbour Road\n40213 Easthaven\n\n" * 30,
    "answers": "Yes\n" * 60 + "No\n" * 60,
    "a table of numbers": "".join(
        f"| Item {i} of the list | {i * 37 % 101} pieces | {i * i % 997}.{i % 10} |\n" for i in range(120)
    ),
    "lines to write on": ("_" * 70 + "\n") * 30,
    "a chorus": ("We will meet again, some day,\nwhen the river turns away,\nwhen the river turns.\n\n") * 4,
}


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_noticed_early(name: str, size: int) -> None:
    """Within a page or two, of which a model would have written dozens; what came before the loop is kept."""
    guard, taken = read(LOOPS[name], size)
    assert guard.repeats
    assert taken < (8000 if name != "a page" else 16_000)
    assert LOOPS[name].startswith(guard.text)
    assert len(guard.text) < taken - 500
    if LOOPS[name].startswith(LETTER):
        assert guard.text.startswith(LETTER)


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_left_whole(name: str) -> None:
    guard, _ = read(PAGES[name])
    assert not guard.repeats
    assert guard.text == PAGES[name]


def test_one_period_is_kept() -> None:
    guard, _ = read(LETTER + "It left our house.\n" * 500)
    assert guard.text.count("It left our house.\n") == 1
    guard, _ = read("Total " + "ab" * 1000)
    assert guard.text == "Total ab"


def test_after_the_end_nothing_is_added() -> None:
    guard, _ = read("no " * 1000)
    before = guard.text
    assert guard.push("more") and guard.text == before
