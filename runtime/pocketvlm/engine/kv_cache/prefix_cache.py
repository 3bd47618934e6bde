"""What each sequence of the KV cache holds, and which one a new prompt should use. Bookkeeping only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pocketvlm.native.context import Cells
from pocketvlm.vision.prompt_units import PromptUnit

_MIN_SHARED = 0.5  # the share of a cache, or of the prompt, that must match before the rest of the cache is dropped


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


@dataclass(frozen=True)
class SequenceChoice:
    """Run in `sequence` and keep its first `known` units. With `source`, copy them from that sequence instead."""

    sequence: CachedSequence
    known: int
    source: CachedSequence | None = None


def choose_sequence(
    sequences: Sequence[CachedSequence],
    length: int,
    own: Mapping[CachedSequence, int],
    shared: Mapping[CachedSequence, int],
) -> SequenceChoice:
    """Choose the sequence for a prompt of `length` units; at least one must be free.

    `own` counts the units each sequence keeps when it is cut back, `shared` those it could give to another.
    The free sequence with the longest common prefix wins, unless that would drop a long cache for a short prefix: then
    it is the least recently used one. A longer prefix of another sequence is shared from there.
    """
    free = [sequence for sequence in sequences if not sequence.busy]
    best = max(free, key=lambda sequence: (own[sequence], -sequence.last_used))
    if own[best] < _MIN_SHARED * min(len(best.content.keys), length):
        best = min(free, key=lambda sequence: sequence.last_used)
    source = max(sequences, key=lambda sequence: shared[sequence])
    if shared[source] > own[best]:
        return SequenceChoice(best, shared[source], source)
    return SequenceChoice(best, own[best])
