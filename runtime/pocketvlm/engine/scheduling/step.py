"""One step over all running requests: a token of every answer and some rows of the prompts are evaluated."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pocketvlm.engine.interface import Event, Finished, ScoredChoices
from pocketvlm.engine.kv_cache.sequence_pool import SequencePool
from pocketvlm.engine.scheduling.embedding_batch import EmbeddingBatch, next_embedding_batch
from pocketvlm.engine.scheduling.prefill_budget import PrefillBudget
from pocketvlm.engine.scheduling.request_state import RequestState
from pocketvlm.engine.scheduling.thread_count import ThreadCountPolicy
from pocketvlm.engine.scheduling.token_tree import MAX_BRANCH_ROWS, Branches
from pocketvlm.engine.speculative.draft_length import MAX_DRAFT_TOKENS, DraftLengthPolicy
from pocketvlm.engine.speculative.ngram import NgramProposer
from pocketvlm.engine.threads import ThreadBudget
from pocketvlm.errors import EngineError, PocketVLMError
from pocketvlm.native.context import Aborted, Batch, Context, Logits
from pocketvlm.native.token_embeddings import TokenEmbeddings
from pocketvlm.system.machine import idle_seconds

MAX_UNREAD_EVENTS = 32  # an answer whose reader falls behind by more waits


@dataclass(frozen=True)
class _TokenRows:
    """The tokens of one request in the batch. `index` is the row of their first logits."""

    request: RequestState
    tokens: list[int]
    index: int


@dataclass(frozen=True)
class _Duration:
    """Seconds of an evaluation, and of the processor time of this process meanwhile."""

    seconds: float
    computed: float


class StepRunner:
    """Evaluates and samples. Runs on the scheduler's thread, except for `abort_unwanted` and `stop`.

    Calls `on_prompt_progress` when a prompt has advanced and `on_finished` when a request has ended, with its error or
    None. Without `token_embeddings` tokens and pictures take turns. Without a `draft_policy` nothing is drafted. With
    `adapts`, steps of answers have fewer threads while other programs compute.
    """

    def __init__(
        self,
        context: Context,
        sequences: SequencePool,
        threads: ThreadBudget,
        *,
        draft_policy: DraftLengthPolicy | None,
        adapts: bool,
        on_prompt_progress: Callable[[RequestState], None],
        on_finished: Callable[[RequestState, BaseException | None], None],
    ) -> None:
        self._context, self._sequences, self._threads = context, sequences, threads
        self._thread_policies: dict[bool, ThreadCountPolicy] = {}  # by whether the background worker has cores
        if adapts:
            self._thread_policies[False] = ThreadCountPolicy(threads.all, idle=idle_seconds)
            self._thread_policies[True] = ThreadCountPolicy(
                threads.shared, others=threads.background, idle=idle_seconds
            )
        self._on_prompt_progress, self._on_finished = on_prompt_progress, on_finished
        self._batch = Batch(context.n_batch)
        self._prefill_budget = PrefillBudget(context.n_batch)
        self._draft_policy = draft_policy
        self.token_embeddings: TokenEmbeddings | None = None
        self._outbox: list[tuple[RequestState, Event]] = []
        self._evaluating: list[RequestState] = []  # in the running native call
        self._stopped = False
        self.steps = self.threads_of_steps = 0  # steps with tokens of answers; the sum of their numbers of threads
        self.running: list[RequestState] = []  # those whose prompts advanced last come last

    def can_step(self) -> bool:
        return any(map(_can_step, self.running))

    def abort_unwanted(self) -> None:
        """Stop the running native call if all its requests were cancelled. For any thread."""
        requests = self._evaluating
        if requests and all(request.cancelled for request in requests):
            self._context.abort()

    def stop(self) -> None:
        """End the running native call and all that follow. For any thread."""
        self._stopped = True
        self._context.abort()

    def deliver(self) -> None:
        """Emit the events of the last step. Readers then work while the next step is evaluated."""
        for request, event in self._outbox:
            if not request.cancelled:
                request.emit(event)
        self._outbox.clear()

    def step(self, *, shared: bool) -> None:
        """Evaluate waiting rows of pictures, then one batch with a token of each answer and text of prompts.

        `shared`: the background worker is busy and has its part of the cores.
        """
        answers = [r for r in self.running if not r.in_prompt and r.tree is None and _reader_keeps_up(r)]
        prompts = [r for r in self.running if r.in_prompt and not r.in_background and not r.waits_for_tile]
        policy, now = self._thread_policies.get(shared), time.monotonic()
        threads = self._threads.shared if shared else self._threads.all
        if policy is not None:
            threads = policy.next_count(now) if answers else policy.prompt_count(now)
        self._context.set_threads(threads)
        if answers:
            self.steps += 1
            self.threads_of_steps += threads
        for request in [r for r in self.running if not r.in_prompt and r.tree is not None]:
            self._score_choices(request)
        # A prompt that waits for tiles of its own loses little by waiting; the others must advance.
        urgent = any(request.encode_task is None or not request.encode_task.tiles for request in prompts)
        room = budget = self._prefill_budget.rows(len(answers), shared, urgent=urgent)
        began = time.perf_counter()
        for request in prompts if room > 0 else ():
            # Beside answers, tokens of prompts go into their batch.
            if batch := self._next_embeddings(request, room, None if answers else self.token_embeddings):
                room -= self._evaluate_embeddings(request, batch)
                break  # the other prompts follow in the next steps
        answers = [request for request in answers if not request.finished]
        alone = room == budget and not (room > 0 and any(map(_can_step, prompts)))
        compares = policy is not None and policy.compares
        drafts = self._drafts(answers, threads, shared) if alone and not compares else {}
        parts, room = self._fill_batch(answers, prompts, drafts, room)
        if parts:
            duration = self._evaluate_tokens(parts)
            if alone and duration is not None:
                if policy is not None:
                    policy.record(self._batch.count, duration.seconds, duration.computed, time.monotonic())
                if self._draft_policy is not None:
                    self._draft_policy.record(duration.seconds, self._batch.count, threads)
        else:
            self.deliver()
        if not any(drafts.values()):
            self._prefill_budget.record(time.perf_counter() - began, len(answers), budget - room, shared)

    def sample(self, request: RequestState, logits: int | Logits, *, drafted: int = 0, accepted: bool = False) -> None:
        """Sample the next token of a request from a row of the last batch, or from a copy of its logits.

        Where choices are to be scored, begin with that instead.

        `drafted` and `accepted` go into the `Token` event.
        """
        assert request.sampler is not None
        now = time.perf_counter()
        if request.generated == 0:
            request.first_token_at = now
            self._outbox.append((request, request.prefill_done()))
        if request.tree is not None:
            row = self._context.logits(logits, copy=False) if isinstance(logits, int) else logits
            try:
                request.tree.score(request.tree.root, row)
            except EngineError as error:
                self._on_finished(request, error)
            return
        try:
            ms = 1000 * (now - request.first_token_at)
            token = request.sampler.sample(self._context, logits, drafted=drafted, accepted=accepted, ms=ms)
        except PocketVLMError as error:  # a grammar's: it concerns this request alone
            self._on_finished(request, error)
            return
        if token is None:
            self._finish(request, "stop")
            return
        request.drafted += drafted
        request.accepted += accepted
        if request.proposer is not None:
            request.proposer.add(token.id)
        request.generated += 1
        request.pending_token = token.id
        if request.generation.buffered and request.generated > 1:
            request.held_events.append(token)
        else:
            self._outbox.append((request, token))
        if request.sampler.complete:
            self._finish(request, "stop")
        elif request.generated >= request.token_limit:
            self._finish(request, "length")

    def _score_choices(self, request: RequestState) -> None:
        """Evaluate the next branches of a request's choices. Other requests wait for no more than that."""
        assert request.tree is not None
        sequence, branches = request.running_sequence, request.tree.waiting[0]
        position = sequence.content.position
        try:
            with self._sequences.branched(sequence, branches.count) as ids:
                if not self._evaluate_branches(request, branches, ids, position):
                    return  # where another request's cancellation aborted it, the next step does it again
        except EngineError as error:
            self._on_finished(request, error)
            return
        del request.tree.waiting[0]
        request.branch_rows += len(branches.nodes)
        if not request.tree.waiting:
            ms = 1000 * (time.perf_counter() - request.first_token_at)
            self._outbox.append((request, ScoredChoices(tuple(request.tree.scores), request.branch_rows, ms)))
            self._finish(request, "stop")
        elif sequence.content.position != position:
            self._on_finished(request, EngineError("the cache was lost while choices were evaluated"))

    def _evaluate_branches(
        self, request: RequestState, branches: Branches, sequences: Sequence[int], position: int
    ) -> bool:
        """Evaluate nodes on `sequences`, which end at `position`. False where that failed or was aborted."""
        assert request.tree is not None
        for start in range(0, len(branches.nodes), MAX_BRANCH_ROWS):
            nodes = branches.nodes[start : start + MAX_BRANCH_ROWS]
            self._batch.clear()
            for node, on in nodes:
                self._batch.add_to_several(node.token, position + node.depth - 1, [sequences[branch] for branch in on])
            if not self._call_native([request], partial(self._context.decode, self._batch)):
                return False
            for index, (node, _) in enumerate(nodes):
                request.tree.score(node, self._context.logits(index, copy=False))
        return True

    def _fill_batch(
        self,
        answers: list[RequestState],
        prompts: list[RequestState],
        drafts: dict[RequestState, list[int]],
        room: int,
    ) -> tuple[list[_TokenRows], int]:
        """Fill the batch with pending and drafted tokens, then text of prompts. Also return what is left of `room`."""
        batch = self._batch
        batch.clear()
        parts: list[_TokenRows] = []
        for request in answers:
            if request.pending_token is not None:
                sequence = request.running_sequence
                parts.append(_TokenRows(request, [request.pending_token, *drafts.get(request, ())], batch.count))
                batch.extend(parts[-1].tokens, sequence.content.position, sequence.id, every=True)
        for request in prompts:
            if room <= 0 or request.finished:
                continue
            if parts and self._context.needs_equal_counts:
                self._evaluate_tokens(parts)
                parts.clear()
                batch.clear()
            if tokens := request.next_tokens(min(room, batch.size - batch.count)):
                sequence = request.running_sequence
                last = request.next_unit + len(tokens) == len(request.units)
                index = batch.extend(tokens, sequence.content.position, sequence.id, last=last)
                parts.append(_TokenRows(request, tokens, index))
                room -= len(tokens)
                self._move_to_end(request)
        return parts, room

    def _drafts(self, answers: list[RequestState], threads: int, shared: bool) -> dict[RequestState, list[int]]:
        """The drafted tokens to evaluate behind the pending tokens: the likeliest of all drafts."""
        if self._draft_policy is None:
            return {}
        drafts: dict[RequestState, list[int]] = {}
        candidates: list[tuple[float, RequestState]] = []
        for request in answers:
            if request.proposer is None:
                # Each picture becomes another negative number, which no token equals.
                tokens = [unit if isinstance(unit, int) else -at for at, unit in enumerate(request.units, 1)]
                request.proposer = NgramProposer(tokens)
                assert request.pending_token is not None
                request.proposer.add(request.pending_token)
            limit = min(MAX_DRAFT_TOKENS, request.token_limit - request.generated - 1)
            drafts[request] = request.proposer.draft(limit)
            candidates += [(chance, request) for chance in request.proposer.chances(len(drafts[request]))]
        # The sort is stable and chances fall along a draft, so what remains of a draft is its beginning.
        candidates.sort(key=lambda candidate: -candidate[0])
        del candidates[self._batch.size - len(answers) :]
        count = self._draft_policy.draft_count(len(answers), [chance for chance, _ in candidates], threads, shared)
        counts = Counter(request for _, request in candidates[:count])
        return {request: draft[: counts[request]] for request, draft in drafts.items()}

    def _move_to_end(self, request: RequestState) -> None:
        self.running.remove(request)
        self.running.append(request)

    def _next_embeddings(
        self, request: RequestState, room: int, token_embeddings: TokenEmbeddings | None
    ) -> EmbeddingBatch | None:
        return next_embedding_batch(
            request.upcoming,
            request.embeddings,
            room,
            self._context,
            token_embeddings,
            position=request.running_sequence.content.position,
            row=request.next_row,
        )

    def _evaluate_embeddings(self, request: RequestState, batch: EmbeddingBatch) -> int:
        """Evaluate a batch of embeddings. Return its number of rows, 0 where it failed."""
        ends_prompt = not batch.next_row and request.next_unit + len(batch.units) == len(request.units)
        decode = partial(
            self._context.decode_embeddings,
            batch.rows,
            batch.positions,
            causal=batch.causal,
            sequence=request.running_sequence.id,
            logits=ends_prompt,
        )
        if not self._call_native([request], decode):
            return 0
        request.next_row = batch.next_row
        if batch.units:
            request.advance(batch.units)
            self._on_prompt_progress(request)
        self._move_to_end(request)
        if ends_prompt:
            self.sample(request, -1)
        return len(batch.rows)

    def _evaluate_tokens(self, parts: list[_TokenRows]) -> _Duration | None:
        """Evaluate the batch and sample. Return the duration of the evaluation alone, None where it failed."""
        began, computed = time.perf_counter(), time.process_time()
        if not self._call_native([part.request for part in parts], partial(self._context.decode, self._batch)):
            return None
        if self._draft_policy is not None:
            self._context.wait()
        duration = _Duration(time.perf_counter() - began, time.process_time() - computed)
        for part in parts:
            request = part.request
            if not request.in_prompt:
                self._verify_draft(part)
                continue
            request.advance(part.tokens)
            self._on_prompt_progress(request)
            if not request.in_prompt:
                self.sample(request, part.index)
        return duration

    def _verify_draft(self, part: _TokenRows) -> None:
        """Sample what follows the pending token, and what follows each drafted token that was sampled, too."""
        request = part.request
        content = request.running_sequence.content
        content.add(part.tokens[0])
        self.sample(request, part.index, drafted=len(part.tokens) - 1)
        for number, draft in enumerate(part.tokens[1:], 1):
            if request.finished or request.pending_token != draft:
                self._sequences.trim(request.running_sequence)
                break
            content.add(draft)
            self.sample(request, part.index + number, accepted=True)

    def _call_native(self, requests: list[RequestState], call: Callable[[], None]) -> bool:
        """Run a native call for `requests`. False where it failed, or was aborted because all were cancelled."""
        self._evaluating = requests
        self.deliver()
        try:
            call()
            return True
        except Aborted:
            self._evaluating = []
            if not self._stopped:
                self._context.allow()
            for request in requests:
                request.next_row = 0
                if not self._sequences.trim(request.running_sequence):
                    self._on_finished(request, EngineError("the cache was lost as another request was cancelled"))
        except Exception as error:  # which request caused it cannot be known
            for request in requests:
                self._sequences.clear(request.running_sequence)
                self._on_finished(request, error)
        finally:
            self._evaluating = []
        return False

    def _finish(self, request: RequestState, reason: Literal["stop", "length"]) -> None:
        assert request.sampler is not None
        finished = Finished(reason, request.sampler.certainty)
        self._outbox += [(request, event) for event in (*request.held_events, finished)]
        self._on_finished(request, None)


def _reader_keeps_up(request: RequestState) -> bool:
    return request.unread_events() < MAX_UNREAD_EVENTS


def _can_step(request: RequestState) -> bool:
    if not request.in_prompt:
        return _reader_keeps_up(request)
    unit = request.units[request.next_unit]
    ready = isinstance(unit, int) or unit in request.embeddings
    return ready and not request.in_background and not request.waits_for_tile
