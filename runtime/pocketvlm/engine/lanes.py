"""The lanes of the KV cache: bookkeeping and native cells, changed together."""

from __future__ import annotations

from collections.abc import Sequence

from pocketvlm.engine.cache import Lane, place
from pocketvlm.native.context import Context
from pocketvlm.vision.units import Unit


class Lanes:
    """As many sequences as the context has. Without `keeps_prefix`, its cells cannot be cut back in part."""

    def __init__(self, context: Context, count: int, *, keeps_prefix: bool) -> None:
        self._context = context
        self._keeps_prefix = keeps_prefix
        self._lanes = [Lane(i) for i in range(count)]
        self._clock = 0

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def free(self) -> int:
        return sum(not lane.busy for lane in self._lanes)

    def take(self, units: Sequence[Unit]) -> tuple[Lane, int]:
        """The lane for a prompt, and how many units of it that lane holds now; at least one must be free."""
        placed = place(self._lanes, units, keeps_prefix=self._keeps_prefix)
        lane, known = placed.lane, placed.known
        lane.busy = True
        if placed.source is not None:
            lane.content.keep(0)
            self.cut(lane)
            lane.content.keys[:] = placed.source.content.keys[:known]
            lane.content.ends[:] = placed.source.content.ends[:known]
            self._context.share(placed.source.id, lane.id, lane.content.position)
        elif known < len(lane.content.keys):
            lane.content.keep(known)
            known = known if self.cut(lane) else 0
        return lane, known

    def release(self, lane: Lane) -> None:
        """What it holds stays for those who come."""
        self._clock += 1
        lane.used, lane.busy = self._clock, False

    def cut(self, lane: Lane) -> bool:
        """Bring the native cache back to what the lane's content says; False where all had to go."""
        if self._context.truncate(lane.content.position, lane.id):
            return True
        self._context.truncate(lane.content.keep(0), lane.id)
        return False

    def clear(self, lane: Lane) -> None:
        lane.content.keep(0)
        self.cut(lane)
