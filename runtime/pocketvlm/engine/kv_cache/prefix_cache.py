"""What each sequence of the KV cache holds. Bookkeeping only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pocketvlm.native.context import Cells
from pocketvlm.vision.prompt_units import PromptUnit


def key_of(unit: PromptUnit) -> int | str:
    """Return what the unit is compared by: a token id, or the key of a span's embeddings."""
    return unit if isinstance(unit, int) else unit.key


def length_of(unit: PromptUnit) -> int:
    """Return how many cells of the cache a unit takes."""
    return 1 if isinstance(unit, int) else unit.tokens


def advance_of(unit: PromptUnit) -> int:
    """Return how many positions a unit takes: fewer than its cells under M-RoPE."""
    return 1 if isinstance(unit, int) else unit.advance


@dataclass(frozen=True, eq=False)
class ContextCheckpoint:
    """The native state after the first `count` units, for caches that cannot be cut back."""

    count: int
    state: Cells


@dataclass
class CachedPrefix:
    """The tokens and embedding spans whose keys and values are in a sequence's cells, in order."""

    keys: list[int | str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # the position after each unit
    checkpoints: list[ContextCheckpoint] = field(default_factory=list)  # by ascending count

    @property
    def position(self) -> int:
        """The position of the next unit."""
        return self.position_after(len(self.ends))

    def position_after(self, count: int) -> int:
        """Return the position after the first `count` units."""
        return self.ends[count - 1] if count else 0

    def common(self, units: Sequence[PromptUnit]) -> int:
        """Return how many units of a new prompt are at the beginning of the cache."""
        count = 0
        for key, unit in zip(self.keys, units, strict=False):
            if key != key_of(unit):
                break
            count += 1
        return count

    def checkpoint(self, count: int) -> ContextCheckpoint | None:
        """Return the latest checkpoint of no more than `count` units."""
        return next((checkpoint for checkpoint in reversed(self.checkpoints) if checkpoint.count <= count), None)

    def evict_checkpoint(self) -> None:
        """Drop the oldest checkpoint that is neither the newest nor the one after the last picture, if there is one."""
        pictures = [point for point in self.checkpoints if isinstance(self.keys[point.count - 1], str)]
        kept = {*pictures[-1:], *self.checkpoints[-1:]}
        self.checkpoints.remove(next((point for point in self.checkpoints if point not in kept), self.checkpoints[0]))

    def first(self, count: int) -> CachedPrefix:
        """Return a copy of the first `count` units."""
        checkpoints = [checkpoint for checkpoint in self.checkpoints if checkpoint.count <= count]
        return CachedPrefix(self.keys[:count], self.ends[:count], checkpoints)

    def add(self, unit: PromptUnit) -> None:
        self.ends.append(self.position + advance_of(unit))
        self.keys.append(key_of(unit))


@dataclass(eq=False)
class CachedSequence:
    """One sequence of the context. `last_used` orders sequences by when a request last released them."""

    id: int
    content: CachedPrefix = field(default_factory=CachedPrefix)
    last_used: int = 0
    busy: bool = False
