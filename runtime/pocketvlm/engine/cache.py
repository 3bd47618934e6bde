"""What the KV cache holds for each sequence, how much of a new prompt is known, and where it should go. Bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass
class CacheContent:
    """Tokens and picture slots whose keys and values are in the cache."""

    keys: list[int | str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # position after each unit

    @property
    def position(self) -> int:
        return self.ends[-1] if self.ends else 0

    def common(self, units: Sequence[Unit]) -> int:
        """How many units of a new prompt stand at the beginning of the cache."""
        count = 0
        for known, unit in zip(self.keys, units, strict=False):
            if known != key_of(unit):
                break
            count += 1
        return count

    def keep(self, count: int) -> int:
        """Forget all but the first `count` units; the position where they end."""
        del self.keys[count:], self.ends[count:]
        return self.position

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


def place(lanes: Sequence[Lane], units: Sequence[Unit], *, keeps_prefix: bool) -> Placement:
    """Where a prompt runs; at least one lane must be free.

    The free lane that knows most of it, unless that would throw away a long cache for a short beginning; else the one
    that was not used for longest. A beginning that another lane knows better is shared from there. A model without
    `keeps_prefix` can only go on where a lane ends.
    """

    def known_in(lane: Lane) -> int:
        known = min(lane.content.common(units), len(units) - 1)  # the last one is evaluated again, for its logits
        return known if keeps_prefix or known == len(lane.content.keys) else 0

    known = {lane.id: known_in(lane) for lane in lanes}
    free = [lane for lane in lanes if not lane.busy]
    best = max(free, key=lambda lane: (known[lane.id], -lane.used))
    if known[best.id] < _WORTH * min(len(best.content.keys), len(units)):
        best = min(free, key=lambda lane: lane.used)
    source = max(lanes, key=lambda lane: known[lane.id])
    if keeps_prefix and known[source.id] > known[best.id]:
        return Placement(best, known[source.id], source)
    return Placement(best, known[best.id])
