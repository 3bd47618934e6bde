"""Questions about pages of text alone: a line of two to four words, or a small table of numbers."""

from __future__ import annotations

from random import Random

from .scenes import Scene
from .turn import Turn

_COUNTED = ("first", "second", "third", "fourth")


def ask_page(scene: Scene, rng: Random) -> Turn | None:
    """Return a question about a line or table, or None for a scene without one."""
    if scene.text is None or scene.text.kind not in ("line", "table"):
        return None
    text = scene.text.text
    if scene.text.kind == "table":
        return _ask_table([row.split() for row in text.split("\n")], rng)
    words = text.split()
    number = rng.randrange(len(words))
    chance = rng.random()
    if chance < 0.6:
        whole = rng.choice(("Read the line.", "Read the text.", "What does it say?", "Read the words."))
        return Turn("page", whole, text)
    if chance < 0.9:
        which = "last" if number == len(words) - 1 and rng.random() < 0.5 else _COUNTED[number]
        return Turn("page", f"What is the {which} word?", words[number])
    return Turn("page", "How many words are there?", str(len(words)))


def _ask_table(rows: list[list[str]], rng: Random) -> Turn:
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    chance = rng.random()
    if chance < 0.5:
        whole = rng.choice(("Read the table.", "Read the text.", "What numbers are in the table?"))
        return Turn("page", whole, "\n".join(" ".join(cells) for cells in rows))
    if chance < 0.65:
        return Turn("page", f"What is in the {_COUNTED[row]} row?", " ".join(rows[row]))
    if chance < 0.8:
        return Turn("page", f"What is in the {_COUNTED[column]} column?", " ".join(cells[column] for cells in rows))
    return Turn("page", f"What number is in row {row + 1}, column {column + 1}?", rows[row][column])
