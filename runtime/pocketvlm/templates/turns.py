"""Conversations as templates get them, and how to rearrange one that a template refuses or does not write whole.

Templates differ in what they know: system texts at the beginning only or not at all, turns that alternate, pictures
from users only. `arrangements` yields a conversation as it is, and then with ever more changes. All of them keep every
text and the order of the pictures. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeAlias

from pocketvlm.templates.sandbox import Traced

Piece: TypeAlias = str | int  # a text, or the index of a picture
SYSTEM_ROLES = ("system", "developer")
_BLANK_LINE = Traced("\n\n")


@dataclass(frozen=True)
class Turn:
    """A message. `calls` are as templates get them; `as_string`: the content was a string, not a list of parts."""

    role: str
    pieces: tuple[Piece, ...] = ()
    as_string: bool = False
    calls: tuple[Any, ...] = ()
    thought: str = ""
    call_id: str | None = None
    name: str | None = None

    @property
    def has_text(self) -> bool:
        return any(isinstance(piece, str) and piece.strip() for piece in self.pieces)

    @property
    def pictures(self) -> tuple[int, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, int))


Turns: TypeAlias = tuple[Turn, ...]


def arrangements(turns: Turns) -> Iterator[Turns]:
    """Yield `turns`, then each different rearrangement of them, those with the fewest changes first."""
    chosen = product(*(range(len(alternatives)) for alternatives in _CHANGES))
    seen = set()
    for choice in sorted(chosen, key=sum):
        arranged = turns
        for alternatives, number in zip(_CHANGES, choice, strict=True):
            arranged = alternatives[number](arranged)
        # Traced strings compare by their characters, so the key has what else can differ.
        key = tuple((turn.role, turn.pieces, len(turn.calls), turn.thought) for turn in arranged)
        if key not in seen:
            seen.add(key)
            yield arranged


def _unchanged(turns: Turns) -> Turns:
    return turns


def _hoist_system_texts(turns: Turns) -> Turns:
    """Join all system texts with the one at the beginning, if there is one."""
    if not turns or turns[0].role not in SYSTEM_ROLES:
        return turns
    first, others = turns[0], []
    for turn in turns[1:]:
        if turn.role in SYSTEM_ROLES:
            first = _join(first, turn)
        else:
            others.append(turn)
    return (first, *others)


def _tell_users_later_system_texts(turns: Turns) -> Turns:
    """Put all system texts but the one at the beginning into the next turn of a user."""
    return (*turns[:1], *_tell_users_system_texts(turns[1:]))


def _tell_users_system_texts(turns: Turns) -> Turns:
    """Put each system text into the turn of a user that follows it, or make it one."""
    told: list[Turn] = []
    open_text = False
    for turn in turns:
        is_system = turn.role in SYSTEM_ROLES
        if is_system:
            turn = replace(turn, role="user")
        if open_text and turn.role == "user":
            told[-1] = replace(_join(told[-1], turn), name=turn.name)
        else:
            told.append(turn)
        open_text = is_system
    return tuple(told)


def _join_neighbours(turns: Turns) -> Turns:
    """Make one turn of each run of turns of a user, or of the assistant."""
    joined: list[Turn] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if last is not None and last.role == turn.role and turn.role in ("user", "assistant") and not last.calls:
            joined[-1] = _join(last, turn)
        else:
            joined.append(turn)
    return tuple(joined)


def _fill_gaps(turns: Turns) -> Turns:
    """Join neighbours, and let an empty question come before an answer, and an empty answer behind a tool's result."""
    filled: list[Turn] = []
    for turn in _join_neighbours(turns):
        before = filled[-1].role if filled else "system"
        if turn.role == "assistant" and before in SYSTEM_ROLES:
            filled.append(Turn("user", ("",)))
        elif turn.role == "user" and before == "tool":
            filled.append(Turn("assistant", ("",)))
        filled.append(turn)
    return tuple(filled)


def _give_users_pictures(turns: Turns) -> Turns:
    """Move pictures of others into the next turn of a user; behind results of tools, make one if none follows."""
    moved: list[Turn] = []
    waiting: tuple[int, ...] = ()
    after_result = False
    for turn in turns:
        if waiting and after_result and turn.role not in ("tool", "user"):
            moved.append(Turn("user", waiting))
            waiting = ()
        if turn.role == "user":
            turn = replace(turn, pieces=(*waiting, *turn.pieces))
            waiting = ()
        elif turn.pictures:
            waiting += turn.pictures
            turn = _without_pictures(turn)
        after_result = turn.role == "tool"
        moved.append(turn)
    if not waiting:
        return tuple(moved)
    if moved[-1].role != "assistant":
        return (*moved, Turn("user", waiting))
    return _append_to_last_user(moved, waiting)


def _give_earlier_users_pictures(turns: Turns) -> Turns:
    """Move pictures of others to the end of the user's turn before them, or to the beginning of the first one."""
    moved: list[Turn] = []
    waiting: tuple[int, ...] = ()
    for turn in turns:
        if turn.role == "user":
            moved.append(replace(turn, pieces=(*waiting, *turn.pieces)))
            waiting = ()
            continue
        moved.append(_without_pictures(turn))
        if any(earlier.role == "user" for earlier in moved):
            moved = list(_append_to_last_user(moved, turn.pictures))
        else:
            waiting += turn.pictures
    return (*moved, Turn("user", waiting)) if waiting else tuple(moved)


def _append_to_last_user(turns: Sequence[Turn], pictures: tuple[int, ...]) -> Turns:
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        return (Turn("user", pictures), *turns)
    user = replace(turns[last], pieces=(*turns[last].pieces, *pictures))
    return (*turns[:last], user, *turns[last + 1 :])


def _without_pictures(turn: Turn) -> Turn:
    return replace(turn, pieces=tuple(piece for piece in turn.pieces if isinstance(piece, str)))


def _separate_calls(turns: Turns) -> Turns:
    """Split answers that have both text and calls, for templates that write one of the two."""
    separated: list[Turn] = []
    for turn in turns:
        if turn.calls and turn.has_text:
            separated.append(replace(turn, calls=(), thought=""))
            turn = replace(turn, pieces=())
        separated.append(turn)
    return tuple(separated)


def _make_one_call_at_a_time(turns: Turns) -> Turns:
    """Split answers with several calls, for templates that know one in a turn. Results follow their calls."""
    split: list[Turn] = []
    waiting: list[Turn] = []  # calls whose results follow
    for turn in _separate_calls(turns):
        if len(turn.calls) > 1:
            split += waiting
            first, *others = ((call,) for call in turn.calls)
            waiting = [replace(turn, calls=first), *(replace(turn, calls=call, thought="") for call in others)]
            continue
        if waiting and turn.role == "tool":
            ids = [call.calls[0]["id"] for call in waiting]
            split.append(waiting.pop(ids.index(turn.call_id) if turn.call_id in ids else 0))
        else:
            split += waiting
            waiting = []
        split.append(turn)
    return (*split, *waiting)


def _drop_thoughts(turns: Turns) -> Turns:
    return tuple(replace(turn, thought="") for turn in turns)


def _join(first: Turn, second: Turn) -> Turn:
    pieces = [*first.pieces]
    rest = [*second.pieces]
    if pieces and rest and isinstance(pieces[-1], str) and isinstance(rest[0], str):
        # One text, because some templates trim each.
        texts = [text for text in (pieces.pop(), rest.pop(0)) if text]
        pieces.append(_BLANK_LINE.join(texts))
    thoughts = [thought for thought in (first.thought, second.thought) if thought]
    return replace(
        first,
        pieces=(*pieces, *rest),
        as_string=first.as_string and second.as_string,
        calls=second.calls,
        thought=_BLANK_LINE.join(thoughts),
        name=first.name if first.name == second.name else None,
    )


# For each kind of change: none, then what changes more and more.
_CHANGES: tuple[tuple[Callable[[Turns], Turns], ...], ...] = (
    (_unchanged, _drop_thoughts),
    (_unchanged, _separate_calls, _make_one_call_at_a_time),
    (_unchanged, _give_users_pictures, _give_earlier_users_pictures),
    (_unchanged, _hoist_system_texts, _tell_users_later_system_texts, _tell_users_system_texts),
    (_unchanged, _join_neighbours, _fill_gaps),
)
