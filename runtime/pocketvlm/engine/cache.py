"""What a KV cache holds, in order, and how much of a new prompt it already knows. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pocketvlm.vision.units import Unit


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
