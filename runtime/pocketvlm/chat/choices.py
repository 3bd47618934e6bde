"""The choices of an answer: a generation for each, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from secrets import randbits

from pocketvlm.chat.completion import CompletionBuilder
from pocketvlm.chat.prepare import PreparedRequest
from pocketvlm.chat.sampling import sampling_of, shows_guesses
from pocketvlm.engine.interface import CancellationToken, EncodeProgress, Engine, Generation, ScoredChoices
from pocketvlm.messages import ChatCompletionChunk, ChatRequest


def generated(
    engine: Engine,
    prepared: PreparedRequest,
    request: ChatRequest,
    builder: CompletionBuilder,
    *,
    measures_certainty: bool = False,
    buffered: bool = False,
    progress: Callable[[int, int], None] | None = None,
    cancellation: CancellationToken | None = None,
) -> Iterator[ChatCompletionChunk]:
    """Yield the chunks of all choices of a request. A seed of its own makes each choice another one."""
    seed = request.seed if request.seed is not None else randbits(32)
    for index in range(request.n or 1):
        generation = Generation(
            prepared.prompt,
            sampling_of(request, seed + index),
            max_tokens=request.limit,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            constraint=prepared.compiled.constraint,
            ignore_eos=bool(request.ignore_eos),
            min_tokens=request.min_tokens or 0,
            measures_certainty=measures_certainty and shows_guesses(request),
            buffered=buffered and not request.stop,  # stop strings are recognized here, not in the engine
        )
        builder.begin_choice()
        with closing(engine.generate(generation, cancellation)) as events:
            for event in events:
                if isinstance(event, EncodeProgress):
                    if progress:
                        progress(event.done, event.total)
                elif not isinstance(event, ScoredChoices):
                    yield from builder.add(event)
                if builder.stopped:
                    break
        yield from builder.end_choice()
