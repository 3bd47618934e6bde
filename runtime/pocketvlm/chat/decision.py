"""Ask an engine how likely each of some answers to a request is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketvlm.chat.prepare import PreparedRequest
from pocketvlm.decisions.calibration import Calibration
from pocketvlm.decisions.choices import Choices
from pocketvlm.decisions.decision import Decision, decided
from pocketvlm.engine.interface import (
    CancellationToken,
    EncodeProgress,
    Engine,
    EngineInfo,
    Generation,
    PrefillDone,
    PromptImage,
    ScoredChoices,
)
from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatRequest, PromptTokensDetails, Timings, Usage
from pocketvlm.native.sampler import Sampling
from pocketvlm.structured.begun_answer import text_of
from pocketvlm.templates.prompt import TextSpan, isolate_control_tokens

# What of a chat request changes its prompt. Nothing is sampled, so the rest would have no effect.
_FIELDS = frozenset(
    "messages model reasoning_effort reasoning thinking enable_thinking think chat_template_kwargs "
    "add_generation_prompt continue_final_message user metadata".split()
)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise RequestError for a field of a chat that means nothing for a decision."""
    for name, value in fields.items():
        if value is not None and name in ChatRequest.model_fields and name not in _FIELDS:
            raise RequestError("has no effect on a decision, which writes nothing", name)


def temperature_of(calibration: str | Path | None, model: EngineInfo) -> float:
    """Return the temperature in a file of a calibration, 1 without one. Raises CalibrationError."""
    return 1.0 if calibration is None else Calibration.read(Path(calibration), model.fingerprint).temperature


def decide(
    engine: Engine,
    prepared: PreparedRequest,
    choices: Choices,
    around: tuple[str, str],
    *,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    cancellation: CancellationToken | None = None,
    queue_ms: float = 0.0,
    load_ms: float = 0.0,
) -> Decision:
    """Return the decision between `choices` as answers to a request that was `prepared`.

    `around` is what the template writes before and behind an answer.

    Raises RequestError, with the path of a choice that the model cannot write.
    """
    info = engine.info
    opening, space, end = _surroundings(prepared, around, info.control_tokens, info.end_tokens)
    prompt: tuple[TextSpan | PromptImage, ...] = (*prepared.prompt, *opening)
    generation = Generation(
        prompt, Sampling(), choices=tuple(f"{space}{text}{end}" for text in choices.flat), buffered=True
    )
    scored: ScoredChoices | None = None
    prefill: PrefillDone | None = None
    try:
        with closing(engine.generate(generation, cancellation)) as events:
            for event in events:
                match event:
                    case EncodeProgress(done, total) if progress:
                        progress(done, total)
                    case PrefillDone():
                        prefill = event
                    case ScoredChoices():
                        scored = event
    except RequestError as error:
        paths = {"choices": choices.param, "choices.0": choices.path(0)}
        if error.param not in paths:
            raise
        raise type(error)(error.message, paths[error.param]) from None
    assert scored is not None and prefill is not None
    usage = Usage(
        prompt_tokens=prefill.prompt_tokens,
        completion_tokens=scored.tokens,
        total_tokens=prefill.prompt_tokens + scored.tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=prefill.cached_tokens, image_tokens=sum(image.tokens for image in prefill.images)
        ),
    )
    evaluated = prefill.prompt_tokens - prefill.cached_tokens
    timings = Timings(
        images=list(prefill.images),
        queue_ms=queue_ms + prefill.queue_ms,
        load_ms=load_ms,
        prefill_ms=prefill.prefill_ms,
        decode_ms=scored.ms,
        prefill_tokens_per_second=1000 * evaluated / prefill.prefill_ms if prefill.prefill_ms else None,
    )
    return decided(
        choices,
        scored.logprobs,
        temperature=temperature,
        model=info.name,
        fingerprint=info.fingerprint,
        usage=usage,
        timings=timings,
    )


def _surroundings(
    prepared: PreparedRequest,
    around: tuple[str, str],
    control_tokens: Mapping[str, int],
    end_tokens: frozenset[str],
) -> tuple[tuple[TextSpan, ...], str, str]:
    """Return what stands between the prompt and a choice as spans, the space before a choice, and what ends it.

    A model writes its answer with the space that the template puts before one: " Yes" is another token than "Yes".
    """
    compiled = prepared.compiled
    before, behind = around
    if compiled.begun is not None:  # its text goes on
        before = "" if text_of(compiled.begun)[-1:].isspace() else " "
    elif compiled.thinking:  # no thought is wanted, and a decision could not read one
        before = "\n</think>\n\n"
    text = before.rstrip(" ")
    opening = isolate_control_tokens((TextSpan(text, special=True),) if text else (), control_tokens)
    places = [(place, mark) for mark in end_tokens if mark and (place := behind.find(mark)) >= 0]
    end = behind[: min(places)[0]] if places else ""
    if any(mark and mark in end for mark in control_tokens):
        end = ""
    return tuple(replace(span, opening=True) for span in opening), before[len(text) :], end
