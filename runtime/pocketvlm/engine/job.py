"""One request on its way through the scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pocketvlm.engine.cache import Lane, length_of
from pocketvlm.engine.encoding import Encoding
from pocketvlm.engine.engine import Event, Generation, Image, ImageReport, Started
from pocketvlm.engine.lookup import Lookup
from pocketvlm.engine.sampling import Drawer
from pocketvlm.native.grammar import Matcher
from pocketvlm.vision.cache import TIERS
from pocketvlm.vision.encoder import Embeddings, Seen, Slot
from pocketvlm.vision.units import Unit, tokens_before_slots

Sink = Callable[[Event | BaseException], None]


@dataclass(eq=False)
class Job:
    """`sink` gets its events, and an error as the last; `unread` counts those that nobody has taken yet.

    Only the scheduler's thread changes it, but for `cancelled`.
    """

    request: Generation
    units: list[Unit]
    seen: list[tuple[Image, Seen]]
    limit: int  # tokens that may be made
    sink: Sink
    unread: Callable[[], int] = lambda: 0
    matcher: Matcher | None = None
    cancelled: bool = False
    over: bool = False
    submitted: float = field(default_factory=time.perf_counter)
    # From here on: since it runs.
    lane: Lane | None = None
    drawer: Drawer | None = None
    encoding: Encoding | None = None
    gather: int = 0  # rows of its prompt: it waits for tiles until so many can be evaluated together
    rows: dict[Slot, Embeddings] = field(default_factory=dict)  # encoded, not yet evaluated
    parts: dict[Slot, Embeddings] = field(default_factory=dict)  # tiles whose slots wait for others
    next: int = 0  # unit to be evaluated
    offset: int = 0  # rows of it that are
    aside: bool = False  # its prompt is evaluated on the side, not in steps
    stops: tuple[int, ...] = ()  # units after which its lane is marked, in order
    kept: list[Event] = field(default_factory=list)  # that go to its sink with its end
    token: int | None = None  # drawn, to be evaluated; None before the answer
    lookup: Lookup | None = None
    made: int = 0
    drafted: int = 0  # tokens that were guessed
    accepted: int = 0  # of which were right
    cached_tokens: int = 0
    began: float = 0.0
    answered: float = 0.0  # when the first token could be drawn

    @property
    def total(self) -> int:
        return sum(map(length_of, self.units))

    @property
    def in_prompt(self) -> bool:
        return self.next < len(self.units)

    @property
    def in_lane(self) -> Lane:
        """Its lane, while it runs."""
        assert self.lane is not None
        return self.lane

    @property
    def waits(self) -> bool:
        """Whether it should not be evaluated before a tile that is missing; one that was begun is ended first."""
        if self.offset:
            return False
        ready = 0
        for unit in self.units[self.next :]:
            if ready >= self.gather:
                return False
            if isinstance(unit, Slot) and unit not in self.rows:
                return True
            ready += length_of(unit)
        return False

    @property
    def upcoming(self) -> list[Unit]:
        """What is to be evaluated, up to a stop."""
        stop = next((stop for stop in self.stops if stop > self.next), len(self.units))
        return self.units[self.next : stop]

    def text(self, most: int) -> list[int]:
        """The tokens that come next, up to a picture or a stop."""
        return tokens_before_slots(self.upcoming[:most])

    def evaluated(self, units: Iterable[Unit]) -> None:
        """Its next units are in the cells of its lane."""
        for unit in units:
            self.in_lane.content.add(unit)
            if isinstance(unit, Slot):
                del self.rows[unit]
            self.next += 1

    def encoded(self, tile: Slot, rows: Embeddings) -> None:
        """A tile's embeddings are there; those of its slot, with the last of its tiles."""
        slot = next(unit for unit in self.units if isinstance(unit, Slot) and tile in unit.tiles)
        self.parts[tile] = rows
        if all(part in self.parts for part in slot.tiles):
            self.rows[slot] = slot.arranged([self.parts.pop(part) for part in slot.tiles])

    def start_of_answer(self) -> Started:
        return Started(
            prompt_tokens=self.total,
            cached_tokens=self.cached_tokens,
            images=tuple(_report(image, picture) for image, picture in self.seen),
            prefill_ms=1000 * (time.perf_counter() - self.began),
            queue_ms=1000 * (self.began - self.submitted),
        )

    def close_pictures(self) -> None:
        for _, picture in self.seen:
            picture.close()


def _report(image: Image, seen: Seen) -> ImageReport:
    return ImageReport(
        original=seen.original,
        used=seen.used,
        tiles=seen.tile_count,
        tokens=seen.tokens,
        shrunk=seen.shrunk,
        encoded=seen.found["none"],
        cache=next((tier for tier in TIERS if seen.found[tier]), "kv"),
        read_ms=image.picture.read_ms,
        preprocess_ms=seen.preprocess_ms,
        encode_ms=seen.encode_ms,
    )
