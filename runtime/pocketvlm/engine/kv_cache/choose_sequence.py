"""Which sequence of the KV cache a new prompt should use: longest common prefix, or least recently used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketvlm.engine.kv_cache.prefix_cache import CachedSequence

_MIN_SHARED = 0.5  # the share of a cache, or of the prompt, that must match before the rest of the cache is dropped


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
