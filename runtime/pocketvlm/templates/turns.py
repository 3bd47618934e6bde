"""Conversations as templates get them, and how to rearrange one that a template refuses or does not write whole.

Templates differ in what they know: system texts at the beginning only or not at all, turns that alternate, pictures
from users only. `arrangements` yields a conversation as it is, and then with ever more changes. All of them keep every
text and the order of the pictures. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pocketvlm.templates.sandbox import Traced, joined


class VideoIndex(int):
    """The index of a video, which counts as one of the pictures."""


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


def flat(pieces: Iterable[Piece]) -> str:
    """Return one string in which each picture is a run of one character."""
    return joined(Traced("\ufffc", author=piece) if isinstance(piece, int) else piece for piece in pieces)


def text_parts(texts: Iterable[str]) -> list[dict[str, str]]:
    """Return texts as a list of content."""
    return [{"type": "text", "text": text} for text in texts]


def arrangements(turns: Turns, *, late_system_texts: bool = True) -> Iterator[Turns]:
    """Yield `turns`, then each different rearrangement of them, those with the smallest changes first.

    Without `late_system_texts`, those that have a system text behind another turn are left out.
    """
    for arranged in _distinct(turns):
        if late_system_texts or not any(turn.role in SYSTEM_ROLES for turn in arranged[1:]):
            yield arranged


def _distinct(turns: Turns) -> Iterator[Turns]:
    yield turns
    # What was reached with each kind of change so far: how much it changed, the choices made, and the turns.
    reached: dict[tuple[object, bool], tuple[int, tuple[int, ...], Turns]] = {(_key(turns), False): (0, (), turns)}
    for changes in _CHANGES:
        further: dict[tuple[object, bool], tuple[int, tuple[int, ...], Turns]] = {}
        for (_, is_joined), (cost, choices, arranged) in reached.items():
            for i, (more, change) in enumerate(changes):
                if change is _fill_gaps and not is_joined:  # gaps between neighbours that can be joined are not filled
                    continue
                changed = change(arranged)
                state = _key(changed), is_joined or change is _join_neighbours
                path = (cost + more, (*choices, i))
                if state not in further or path < further[state][:2]:
                    further[state] = (*path, changed)
        reached = further
    seen = {_key(turns)}
    for (key, _), (_, _, arranged) in sorted(reached.items(), key=lambda item: item[1][:2]):
        if key not in seen:
            seen.add(key)
            yield arranged


def _key(turns: Turns) -> object:
    """Return what tells arrangements apart: traced strings compare by their characters."""
    return tuple((turn.role, turn.pieces, len(turn.calls), turn.thought) for turn in turns)


def _unchanged(turns: Turns) -> Turns:
    return turns


def _hoist_system_texts(turns: Turns) -> Turns:
    """Join all system texts with the one at the beginning, if there is one."""
    if not turns or turns[0].role not in SYSTEM_ROLES:
        return turns
    system = [turn for turn in turns if turn.role in SYSTEM_ROLES]
    return (_join(system), *(turn for turn in turns if turn.role not in SYSTEM_ROLES))


def _give_users_later_system_texts(turns: Turns) -> Turns:
    """Put all system texts but the one at the beginning into the next turn of a user."""
    return (*turns[:1], *_give_users_system_texts(turns[1:]))


def _give_users_system_texts(turns: Turns) -> Turns:
    """Put each system text into the turn of a user that follows it, or make it one."""
    groups: list[list[Turn]] = []
    open_text = False
    for turn in turns:
        is_system = turn.role in SYSTEM_ROLES
        if is_system:
            turn = replace(turn, role="user")
        if open_text and turn.role == "user":
            groups[-1].append(turn)
        else:
            groups.append([turn])
        open_text = is_system
    return tuple(replace(_join(group), name=group[-1].name) for group in groups)


def _join_neighbours(turns: Turns) -> Turns:
    """Make one turn of each run of turns of a user, or of the assistant."""
    groups: list[list[Turn]] = []
    for turn in turns:
        last = groups[-1][-1] if groups else None
        if last is not None and last.role == turn.role and turn.role in ("user", "assistant") and not last.calls:
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return tuple(map(_join, groups))


def _fill_gaps(turns: Turns) -> Turns:
    """Let empty turns come between two questions or two answers, and before an answer at the beginning.

    Calls and their results do not count, as in the templates that check this.
    """
    filled: list[Turn] = []
    last = "assistant"
    for turn in turns:
        if turn.role in ("user", "assistant") and not turn.calls:
            if turn.role == last:
                filled.append(Turn("assistant" if last == "user" else "user", ("",)))
            last = turn.role
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
    last: int | None = None  # of the user's turns
    for turn in turns:
        if turn.role == "user":
            last = len(moved)
            moved.append(replace(turn, pieces=(*waiting, *turn.pieces)))
            waiting = ()
            continue
        moved.append(_without_pictures(turn))
        if last is None:
            waiting += turn.pictures
        elif turn.pictures:
            moved[last] = replace(moved[last], pieces=(*moved[last].pieces, *turn.pictures))
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
    waiting: dict[int, Turn] = {}  # calls whose results follow
    numbers: dict[str | None, deque[int]] = {}  # of these by their ids
    for turn in _separate_calls(turns):
        if len(turn.calls) > 1:
            split += waiting.values()
            waiting, numbers = {}, {}
            for i, call in enumerate(turn.calls):
                waiting[i] = replace(turn, calls=(call,), thought="" if i else turn.thought)
                numbers.setdefault(call["id"], deque()).append(i)
            continue
        if waiting and turn.role == "tool":
            named = numbers.get(turn.call_id, deque())
            while named and named[0] not in waiting:
                named.popleft()
            split.append(waiting.pop(named[0] if named else next(iter(waiting))))
        else:
            split += waiting.values()
            waiting = {}
        split.append(turn)
    return (*split, *waiting.values())


def _drop_thoughts(turns: Turns) -> Turns:
    return tuple(replace(turn, thought="") for turn in turns)


def _join(turns: Sequence[Turn]) -> Turn:
    """Return one turn. Texts of different turns that follow each other become one, because some templates trim each."""
    if len(turns) == 1:
        return turns[0]
    groups: list[list[Piece]] = []
    for turn in turns:
        for i, piece in enumerate(turn.pieces):
            if i == 0 and groups and isinstance(piece, str) and isinstance(groups[-1][0], str):
                groups[-1].append(piece)
            else:
                groups.append([piece])
    first = turns[0]
    return replace(
        first,
        pieces=tuple(
            group[0] if len(group) == 1 else _BLANK_LINE.join(text for text in group if isinstance(text, str) and text)
            for group in groups
        ),
        as_string=all(turn.as_string for turn in turns),
        calls=turns[-1].calls,
        thought=_BLANK_LINE.join(turn.thought for turn in turns if turn.thought),
        name=first.name if all(turn.name == first.name for turn in turns) else None,
    )


# Of each kind of change one is made. The first number is how much it changes.
_CHANGES: tuple[tuple[tuple[int, Callable[[Turns], Turns]], ...], ...] = (
    ((0, _unchanged), (1, _drop_thoughts)),
    ((0, _unchanged), (1, _give_users_pictures), (5, _give_earlier_users_pictures)),
    (
        (0, _unchanged),
        (1, _hoist_system_texts),
        (2, _give_users_later_system_texts),
        (3, _give_users_system_texts),
    ),
    ((0, _unchanged), (1, _join_neighbours)),
    ((0, _unchanged), (1, _separate_calls), (2, _make_one_call_at_a_time)),
    ((0, _unchanged), (2, _fill_gaps)),
)
