"""The sequences of the KV cache. Bookkeeping and native cells change together here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from pocketvlm.engine.interface import Snapshot
from pocketvlm.engine.kv_cache.choose_sequence import choose_sequence
from pocketvlm.engine.kv_cache.prefix_cache import CachedPrefix, CachedSequence, ContextCheckpoint, length_of
from pocketvlm.errors import EngineBusyError, EngineError, SessionError
from pocketvlm.native.context import Context
from pocketvlm.vision.encoder import EmbeddingSpan
from pocketvlm.vision.prompt_units import PromptUnit, PromptUnits

_CHECKPOINT_ROWS = 64  # rows of a prompt from one checkpoint to that after the last message, at least
_MAX_CHECKPOINTS = 4  # of one sequence
_MIN_CHECKPOINTS = 2  # of the one in use, however large: after its pictures and after its last message
_MAX_CHECKPOINT_BYTES = 256 << 20  # of all sequences together
MAX_BRANCHES = 15  # ways in which one sequence continues at once: with its own, as many logits as tokens of choices


class SequencePool:
    """The `count` sequences of a context.

    If the context `needs_checkpoints` (sliding windows, recurrent layers), a sequence can only continue at its end or
    at a context checkpoint.
    """

    def __init__(self, context: Context, count: int) -> None:
        self._context = context
        self._sequences = [CachedSequence(i) for i in range(count)]
        self._clock = 0

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def free(self) -> int:
        return sum(not sequence.busy for sequence in self._sequences)

    def acquire(self, units: Sequence[PromptUnit]) -> tuple[CachedSequence, int]:
        """Return a sequence for a prompt and how many units of the prompt it holds now; at least one must be free."""
        limit = len(units) - 1  # the last unit is evaluated again, for its logits
        common = {sequence: min(sequence.content.common(units), limit) for sequence in self._sequences}
        own = {sequence: self._restorable(sequence, count) for sequence, count in common.items()}
        shared = {sequence: self._shareable(sequence, count) for sequence, count in common.items()}
        choice = choose_sequence(self._sequences, len(units), own, shared)
        sequence, known = choice.sequence, choice.known
        if choice.source is not None:
            known = self._share(choice.source, sequence, known)
        elif known < len(sequence.content.keys):
            known = self._cut_back(sequence, known)
        sequence.busy = True  # last: an error above must not leave it busy
        return sequence, known

    def release(self, sequence: CachedSequence) -> None:
        """Make a sequence free. It keeps what it holds for later prompts."""
        self._clock += 1
        sequence.last_used, sequence.busy = self._clock, False

    def trim(self, sequence: CachedSequence) -> bool:
        """Cut the native cache back to the recorded content. False where all of it had to go."""
        if self._context.truncate(sequence.content.position, sequence.id):
            return True
        self.clear(sequence)
        return False

    def clear(self, sequence: CachedSequence) -> None:
        sequence.content = CachedPrefix()
        self._context.truncate(0, sequence.id)

    def reset(self) -> None:
        """Forget everything, after an error left the cells unknown. No request may run."""
        self._context.clear()
        self._sequences = [CachedSequence(i) for i in range(len(self._sequences))]

    def checkpoint_counts(self, sequence: CachedSequence, prompt: PromptUnits, known: int) -> tuple[int, ...]:
        """Return after how many units of a prompt to save a checkpoint. The sequence holds the first `known` of them.

        They are the places up to which other prompts are likely to be the same: after the pictures, for other questions
        about them, and after the last message, for the next turn. The latter only a good way behind the checkpoint
        before: each takes an evaluation of its own, which costs more than evaluating a few rows again.
        """
        if not self._context.needs_checkpoints:
            return ()
        units, last = prompt.units, len(prompt.units) - 1  # the last unit is evaluated again, for its logits
        pictures = max((number for number, unit in enumerate(units, 1) if isinstance(unit, EmbeddingSpan)), default=0)
        message = min(prompt.given, last)
        counts = [pictures] if known < pictures <= last else []
        before = max([0, *counts, *(checkpoint.count for checkpoint in sequence.content.checkpoints)])
        if known < message and sum(map(length_of, units[before:message])) >= _CHECKPOINT_ROWS:
            counts.append(message)
        return tuple(counts)

    def save_checkpoint(self, sequence: CachedSequence) -> None:
        """Save a checkpoint of a sequence as it is now. Others are evicted to stay within the limits."""
        content = sequence.content
        with suppress(EngineError):  # then there is no checkpoint, and a later prompt is evaluated again
            state = self._context.state(sequence.id, part=True)
            content.checkpoints.append(ContextCheckpoint(len(content.keys), state))
        while len(content.checkpoints) > _MAX_CHECKPOINTS:
            content.evict_checkpoint()
        order = sorted(self._sequences, key=lambda other: (other is sequence, other.busy, other.last_used))
        while sum(point.state.nbytes for other in order for point in other.content.checkpoints) > _MAX_CHECKPOINT_BYTES:
            oldest = next(other for other in order if other.content.checkpoints)
            if oldest is sequence and len(content.checkpoints) <= _MIN_CHECKPOINTS:
                break
            oldest.content.evict_checkpoint()

    @property
    def max_branches(self) -> int:
        """How many branches `branched` can give at once."""
        return max(1, len(self._context.branches))

    @contextmanager
    def branched(self, sequence: CachedSequence, count: int) -> Iterator[Sequence[int]]:
        """Give the ids of `count` sequences that begin as `sequence` does. What is added to them is dropped at the end.

        Where there is only one branch, it is the sequence itself, which is then restored.
        """
        position = sequence.content.position
        branches = self._context.branches[:count]
        if not branches:
            state = self._context.state(sequence.id, part=True) if self._context.needs_checkpoints else None
            try:
                yield (sequence.id,)
            finally:
                kept = sequence.content.position == position  # an error clears a sequence
                if state is None or not kept:
                    self.trim(sequence)
                elif not self._context.restore(state, position, sequence.id, part=True):
                    self.clear(sequence)
            return
        try:
            for branch in branches:
                self._context.share(sequence.id, branch, position)
            yield branches
        finally:
            for branch in branches:
                self._context.truncate(0, branch)

    def snapshot(self, units: Sequence[PromptUnit]) -> Snapshot:
        """Copy what the best free sequence holds of a prompt. The sequence drops whatever else it held."""
        free = [sequence for sequence in self._sequences if not sequence.busy]
        if not free:
            return Snapshot()
        common = {sequence: sequence.content.common(units) for sequence in free}
        sequence = max(free, key=lambda sequence: self._restorable(sequence, common[sequence]))
        count = self._restorable(sequence, common[sequence])
        if count < len(sequence.content.keys):
            count = self._cut_back(sequence, count)
        if not count:
            return Snapshot()
        content = sequence.content
        checkpoints = tuple((checkpoint.count, checkpoint.state) for checkpoint in content.checkpoints)
        state = self._context.state(sequence.id, part=False)
        return Snapshot(tuple(content.keys), tuple(content.ends), state, checkpoints)

    def adopt(self, snapshot: Snapshot) -> None:
        """Put a snapshot into the least recently used free sequence.

        Raises EngineBusyError where no sequence is free, SessionError where the snapshot does not fit.
        """
        free = [sequence for sequence in self._sequences if not sequence.busy]
        if not free:
            raise EngineBusyError("all sequences of the KV cache are in use; restore a session while one is free")
        if snapshot.state is None:
            return
        sequence = min(free, key=lambda sequence: sequence.last_used)
        # Copies, because each state is a view into everything that was read with it.
        checkpoints = [ContextCheckpoint(count, state.copy()) for count, state in snapshot.checkpoints]
        content = CachedPrefix(list(snapshot.keys), list(snapshot.ends), checkpoints)
        if content.position > self._context.n_ctx:
            raise SessionError("holds more than the context does")
        self.clear(sequence)
        if not self._context.restore(snapshot.state, content.position, sequence.id, part=False):
            self.clear(sequence)
            raise SessionError("libllama does not take the saved state of the cache")
        sequence.content = content
        self.release(sequence)

    def _restorable(self, sequence: CachedSequence, count: int) -> int:
        """Return to how many of its first `count` units the sequence can be brought back."""
        content = sequence.content
        if count == len(content.keys) or self._context.can_truncate(content.position_after(count), sequence.id):
            return count
        checkpoint = content.checkpoint(count)
        return checkpoint.count if checkpoint else 0

    def _shareable(self, sequence: CachedSequence, count: int) -> int:
        """Return how many of its first `count` units another sequence could get."""
        if not self._context.needs_checkpoints:
            return self._restorable(sequence, count)
        checkpoint = sequence.content.checkpoint(count)
        return checkpoint.count if checkpoint else 0

    def _cut_back(self, sequence: CachedSequence, count: int) -> int:
        """Drop all but the first `count` units. Return how many are left."""
        if self._context.can_truncate(sequence.content.position_after(count), sequence.id):
            sequence.content = sequence.content.first(count)
            return count if self.trim(sequence) else 0
        return self._resume(sequence, sequence.content, count)

    def _share(self, source: CachedSequence, sequence: CachedSequence, count: int) -> int:
        """Let `sequence` begin as `source` does. Return how many units it has then."""
        self.clear(sequence)
        self._context.share(source.id, sequence.id, source.content.position_after(count))
        if self._context.needs_checkpoints:
            return self._resume(sequence, source.content, count)
        sequence.content = source.content.first(count)
        return count

    def _resume(self, sequence: CachedSequence, content: CachedPrefix, count: int) -> int:
        """Continue from the checkpoint at `count` units of `content`."""
        checkpoint = content.checkpoint(count)
        assert checkpoint is not None and checkpoint.count == count
        sequence.content = content.first(count)
        if self._context.restore(checkpoint.state, content.position_after(count), sequence.id, part=True):
            return count
        self.clear(sequence)
        return 0
