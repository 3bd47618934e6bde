"""The lanes of the KV cache: bookkeeping and native cells, changed together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from pocketvlm.engine.cache import CacheContent, Lane, Mark, place
from pocketvlm.engine.engine import Snapshot
from pocketvlm.errors import EngineBusyError, EngineError, SessionError
from pocketvlm.native.context import Context
from pocketvlm.vision.encoder import Slot
from pocketvlm.vision.units import Unit

_MARKS = 4  # of one lane
_MARKED = 256 << 20  # bytes of all marks


class Lanes:
    """As many sequences as the context has.

    Where the context forgets, a lane can go on at its end only, and at the marks that were set on its way.
    """

    def __init__(self, context: Context, count: int) -> None:
        self._context = context
        self._lanes = [Lane(i) for i in range(count)]
        self._clock = 0

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def free(self) -> int:
        return sum(not lane.busy for lane in self._lanes)

    def take(self, units: Sequence[Unit]) -> tuple[Lane, int]:
        """The lane for a prompt, and how many units of it that lane holds now; at least one must be free."""
        most = len(units) - 1  # the last one is evaluated again, for its logits
        common = {lane: min(lane.content.common(units), most) for lane in self._lanes}
        own = {lane: self._reach(lane, count) for lane, count in common.items()}
        shared = {lane: self._offer(lane, count) for lane, count in common.items()}
        placed = place(self._lanes, len(units), own, shared)
        lane, known = placed.lane, placed.known
        if placed.source is not None:
            known = self._share(placed.source, lane, known)
        elif known < len(lane.content.keys):
            known = self._back(lane, known)
        lane.busy = True  # last: what failed above would keep it for ever
        return lane, known

    def release(self, lane: Lane) -> None:
        """What it holds stays for those who come."""
        self._clock += 1
        lane.used, lane.busy = self._clock, False

    def cut(self, lane: Lane) -> bool:
        """Bring the native cache back to what the lane's content says; False where all had to go."""
        if self._context.truncate(lane.content.position, lane.id):
            return True
        self.clear(lane)
        return False

    def clear(self, lane: Lane) -> None:
        lane.content = CacheContent()
        self._context.truncate(0, lane.id)

    def forget(self) -> None:
        """All of it, where nobody knows any more what the cells hold; no request may run."""
        self._context.clear()
        self._lanes = [Lane(i) for i in range(len(self._lanes))]

    def stops(self, units: Sequence[Unit], known: int) -> tuple[int, ...]:
        """After which units of a prompt to mark its lane: after its pictures, and before its last token."""
        if not self._context.forgets:
            return ()
        pictures = max((number for number, unit in enumerate(units, 1) if isinstance(unit, Slot)), default=0)
        return tuple(stop for stop in sorted({pictures, len(units) - 1}) if known < stop < len(units))

    def mark(self, lane: Lane) -> None:
        """Keep what brings the lane back to where it is, within limits: the oldest go first."""
        content = lane.content
        with suppress(EngineError):  # then there is none
            content.marks.append(Mark(len(content.keys), self._context.state(lane.id, part=True)))
        del content.marks[:-_MARKS]
        others = sorted(self._lanes, key=lambda other: (other is lane, other.busy, other.used))
        while sum(mark.state.nbytes for other in others for mark in other.content.marks) > _MARKED:
            oldest = next(other for other in others if other.content.marks)
            if oldest.content.marks == content.marks[-1:]:
                break  # one always stays
            del oldest.content.marks[0]

    def snapshot(self, units: Sequence[Unit]) -> Snapshot:
        """What the free lane that knows most of a prompt knows of it; the lane forgets what else it held."""
        free = [lane for lane in self._lanes if not lane.busy]
        if not free:
            return Snapshot()
        common = {lane: lane.content.common(units) for lane in free}
        lane = max(free, key=lambda lane: self._reach(lane, common[lane]))
        count = self._reach(lane, common[lane])
        if count < len(lane.content.keys):
            count = self._back(lane, count)
        if not count:
            return Snapshot()
        content = lane.content
        marks = tuple((mark.count, mark.state) for mark in content.marks)
        state = self._context.state(lane.id, part=False)
        return Snapshot(tuple(content.keys), tuple(content.ends), state, marks)

    def adopt(self, snapshot: Snapshot) -> None:
        """Put it into the free lane that was not used for longest."""
        free = [lane for lane in self._lanes if not lane.busy]
        if not free:
            raise EngineBusyError("all lanes are in use: a session is restored while one is free")
        if snapshot.state is None:
            return
        lane = min(free, key=lambda lane: lane.used)
        marks = [Mark(count, state.copy()) for count, state in snapshot.marks]  # not with all that was read beside
        content = CacheContent(list(snapshot.keys), list(snapshot.ends), marks)
        if content.position > self._context.n_ctx:
            raise SessionError("holds more than the context does")
        self.clear(lane)
        if not self._context.restore(snapshot.state, content.position, lane.id, part=False):
            self.clear(lane)
            raise SessionError("libllama does not take the saved state of the cache")
        lane.content = content
        self.release(lane)

    def _reach(self, lane: Lane, count: int) -> int:
        """How many of its first `count` units the lane can be brought back to."""
        content = lane.content
        if count == len(content.keys) or self._context.returns(content.at(count), lane.id):
            return count
        mark = content.mark(count)
        return mark.count if mark else 0

    def _offer(self, lane: Lane, count: int) -> int:
        """How many of its first `count` units another lane could get."""
        if not self._context.forgets:
            return self._reach(lane, count)
        mark = lane.content.mark(count)
        return mark.count if mark else 0

    def _back(self, lane: Lane, count: int) -> int:
        """Forget all but the first `count` units; how many are left."""
        if self._context.returns(lane.content.at(count), lane.id):
            lane.content = lane.content.first(count)
            return count if self.cut(lane) else 0
        return self._resume(lane, lane.content, count)

    def _share(self, source: Lane, lane: Lane, count: int) -> int:
        """Let `lane` begin as `source` does; how many units it has then."""
        self.clear(lane)
        self._context.share(source.id, lane.id, source.content.at(count))
        if self._context.forgets:
            return self._resume(lane, source.content, count)
        lane.content = source.content.first(count)
        return count

    def _resume(self, lane: Lane, content: CacheContent, count: int) -> int:
        """Go on from the mark at `count` units of `content`."""
        mark = content.mark(count)
        assert mark is not None and mark.count == count
        lane.content = content.first(count)
        if self._context.restore(mark.state, content.at(count), lane.id, part=True):
            return count
        self.clear(lane)
        return 0
