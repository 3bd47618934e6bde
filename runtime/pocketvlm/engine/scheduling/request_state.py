"""The state of one request while the scheduler has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pocketvlm.engine.background.encode_task import EncodeTask
from pocketvlm.engine.interface import Event, Generation, PrefillDone, PromptImage
from pocketvlm.engine.kv_cache.prefix_cache import CachedSequence, length_of
from pocketvlm.engine.scheduling.token_sampler import TokenSampler
from pocketvlm.engine.scheduling.token_tree import TokenTree
from pocketvlm.engine.speculative.ngram import NgramProposer
from pocketvlm.messages import ImageTimings
from pocketvlm.native.grammar import Matcher
from pocketvlm.vision.embedding_cache import TIERS
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan, PreparedImage
from pocketvlm.vision.prompt_units import PromptUnit, PromptUnits, leading_tokens

Emit = Callable[[Event | BaseException], None]


@dataclass(eq=False)
class RequestState:
    """`emit` receives the request's events; an error is the last. `unread_events` counts those not yet read.

    Only the scheduler's thread changes it, except for `cancelled`.
    """

    generation: Generation
    prompt: PromptUnits
    images: list[tuple[PromptImage, PreparedImage]]
    token_limit: int  # tokens of the answer, at most
    tree: TokenTree | None = field(default=None, kw_only=True)  # of the choices, which are scored instead of an answer
    emit: Emit
    unread_events: Callable[[], int] = lambda: 0
    matcher: Matcher | None = None
    cancelled: bool = False
    finished: bool = False
    submitted_at: float = field(default_factory=time.perf_counter)

    # Set when the request starts to run.
    sequence: CachedSequence | None = None
    sampler: TokenSampler | None = None
    encode_task: EncodeTask | None = None
    min_batch_rows: int = 0  # the prompt waits for tiles until this many rows can be evaluated together
    embeddings: dict[EmbeddingSpan, Embeddings] = field(default_factory=dict)  # encoded, not yet evaluated
    tile_embeddings: dict[EmbeddingSpan, Embeddings] = field(default_factory=dict)  # of spans that lack other tiles
    next_unit: int = 0  # the first unit that is not evaluated
    next_row: int = 0  # the first row of that unit that is not evaluated
    in_background: bool = False  # the background worker evaluates the prompt, not the scheduler's steps
    checkpoint_after: tuple[int, ...] = ()  # numbers of units after which a context checkpoint is saved, ascending
    held_events: list[Event] = field(default_factory=list)  # emitted together with the end of the answer
    started_at: float = 0.0
    cached_tokens: int = 0

    # Set while it answers.
    pending_token: int | None = None  # sampled, to be evaluated next; None before the answer
    proposer: NgramProposer | None = None
    generated: int = 0
    drafted: int = 0
    accepted: int = 0  # drafted tokens that were sampled, too
    first_token_at: float = 0.0
    branch_rows: int = 0  # tokens of choices that were evaluated

    @property
    def units(self) -> list[PromptUnit]:
        return self.prompt.units

    @property
    def prompt_tokens(self) -> int:
        return sum(map(length_of, self.units))

    @property
    def in_prompt(self) -> bool:
        return self.next_unit < len(self.units)

    @property
    def running_sequence(self) -> CachedSequence:
        """Its sequence of the KV cache, while it runs."""
        assert self.sequence is not None
        return self.sequence

    @property
    def waits_for_tile(self) -> bool:
        """Whether the prompt should wait for a missing tile. A span that was begun is finished first."""
        if self.next_row:
            return False
        ready = 0
        for unit in self.units[self.next_unit :]:
            if ready >= self.min_batch_rows:
                return False
            if isinstance(unit, EmbeddingSpan) and unit not in self.embeddings:
                return True
            ready += length_of(unit)
        return False

    @property
    def upcoming(self) -> list[PromptUnit]:
        """The units to evaluate next, up to the next context checkpoint."""
        end = next((count for count in self.checkpoint_after if count > self.next_unit), len(self.units))
        return self.units[self.next_unit : end]

    def next_tokens(self, limit: int) -> list[int]:
        """Up to `limit` text tokens that come next, up to a picture or a context checkpoint."""
        return leading_tokens(self.upcoming[:limit])

    def advance(self, units: Iterable[PromptUnit]) -> None:
        """Record that the next `units` are in the cells of its sequence."""
        for unit in units:
            self.running_sequence.content.add(unit)
            if isinstance(unit, EmbeddingSpan):
                del self.embeddings[unit]
            self.next_unit += 1

    def add_tile(self, tile: EmbeddingSpan, rows: Embeddings) -> None:
        """Keep the embeddings of a tile. The last tile of a span completes the span's embeddings."""
        span = next(unit for unit in self.units if isinstance(unit, EmbeddingSpan) and tile in unit.tiles)
        self.tile_embeddings[tile] = rows
        if all(part in self.tile_embeddings for part in span.tiles):
            self.embeddings[span] = span.arranged([self.tile_embeddings.pop(part) for part in span.tiles])

    def prefill_done(self) -> PrefillDone:
        return PrefillDone(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            images=tuple(_timings(image, prepared) for image, prepared in self.images),
            prefill_ms=1000 * (time.perf_counter() - self.started_at),
            queue_ms=1000 * (self.started_at - self.submitted_at),
        )

    def close_images(self) -> None:
        for _, prepared in self.images:
            prepared.close()


def _timings(image: PromptImage, prepared: PreparedImage) -> ImageTimings:
    return ImageTimings(
        original_size=prepared.original,
        used_size=prepared.used,
        tiles=prepared.tile_count,
        tokens=prepared.tokens,
        shrunk=prepared.shrunk,
        encoded=prepared.tile_sources["none"],
        cache=next((tier for tier in TIERS if prepared.tile_sources[tier]), "kv"),
        read_ms=image.picture.read_ms,
        preprocess_ms=prepared.preprocess_ms,
        encode_ms=prepared.encode_ms,
        pages=image.picture.pages,
        notes=image.picture.notes,
        high_size=prepared.high_size,
        view=prepared.view,
        part=image.param,
    )
