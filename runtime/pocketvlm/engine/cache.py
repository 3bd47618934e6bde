"""What the KV cache holds for each sequence, how much of a new prompt is known, and where it should go. Bookkeeping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pocketvlm.native.context import Cells
from pocketvlm.vision.units import Unit

_WORTH = 0.5  # of a cache or prompt: what must be shared before a cache is cut back for a new prompt


def key_of(unit: Unit) -> int | str:
    return unit if isinstance(unit, int) else unit.key


def length_of(unit: Unit) -> int:
    """Cells of the cache."""
    return 1 if isinstance(unit, int) else unit.tokens


def advance_of(unit: Unit) -> int:
    """Positions that it takes; fewer than its cells under M-RoPE."""
    return 1 if isinstance(unit, int) else unit.advance


@dataclass(frozen=True, eq=False)
class Mark:
    """What brings a lane back to its first `count` units, where its cache cannot be cut back."""

    count: int
    state: Cells


@dataclass
class CacheContent:
    """Tokens and picture slots whose keys and values are in the cache."""

    keys: list[int | str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # position after each unit
    marks: list[Mark] = field(default_factory=list)  # in order

    @property
    def position(self) -> int:
        return self.at(len(self.ends))

    def at(self, count: int) -> int:
        """The position after the first `count` units."""
        return self.ends[count - 1] if count else 0

    def common(self, units: Sequence[Unit]) -> int:
        """How many units of a new prompt stand at the beginning of the cache."""
        count = 0
        for known, unit in zip(self.keys, units, strict=False):
            if known != key_of(unit):
                break
            count += 1
        return count

    def mark(self, count: int) -> Mark | None:
        """The last one that holds no more than `count` units."""
        return next((mark for mark in reversed(self.marks) if mark.count <= count), None)

    def first(self, count: int) -> CacheContent:
        """The first `count` units of it."""
        marks = [mark for mark in self.marks if mark.count <= count]
        return CacheContent(self.keys[:count], self.ends[:count], marks)

    def add(self, unit: Unit) -> None:
        self.ends.append(self.position + advance_of(unit))
        self.keys.append(key_of(unit))


@dataclass(eq=False)
class Lane:
    """One sequence of the context: what it holds, and when a request last had it."""

    id: int
    content: CacheContent = field(default_factory=CacheContent)
    used: int = 0
    busy: bool = False


@dataclass(frozen=True)
class Placement:
    """Run in `lane`, of which the first `known` units stay; with `source`, they are shared from that lane instead."""

    lane: Lane
    known: int
    source: Lane | None = None


def place(lanes: Sequence[Lane], length: int, own: Mapping[Lane, int], shared: Mapping[Lane, int]) -> Placement:
    """Where a prompt of `length` units runs; at least one lane must be free.

    `own`: how many of them each lane has when it is cut back; `shared`: how many it could give to another.
    The free lane that knows most of it, unless that would throw away a long cache for a short beginning; else the one
    that was not used for longest. A beginning that another lane knows better is shared from there.
    """
    free = [lane for lane in lanes if not lane.busy]
    best = max(free, key=lambda lane: (own[lane], -lane.used))
    if own[best] < _WORTH * min(len(best.content.keys), length):
        best = min(free, key=lambda lane: lane.used)
    source = max(lanes, key=lambda lane: shared[lane])
    if shared[source] > own[best]:
        return Placement(best, shared[source], source)
    return Placement(best, own[best])
