"""From the fields of a request to the parameters of the sampler, and whether scores of its tokens mean something."""

from __future__ import annotations

from typing import Any

from pocketvlm.messages import ChatRequest
from pocketvlm.native.sampler import Sampling


def sampling_of(request: ChatRequest, seed: int) -> Sampling:
    """Sample greedily by default, so that the same picture and question give the same answer."""

    def value_or(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Sampling(
        temperature=value_or(request.temperature, 0.0),
        top_k=value_or(request.top_k, 0),
        top_p=value_or(request.top_p, 1.0),
        min_p=value_or(request.min_p, 0.0),
        repeat_penalty=value_or(request.repetition, 1.0),
        frequency_penalty=value_or(request.frequency_penalty, 0.0),
        presence_penalty=value_or(request.presence_penalty, 0.0),
        logit_bias=dict(request.logit_bias or {}),
        seed=seed,
    )


def shows_guesses(request: ChatRequest) -> bool:
    """Return whether an unlikely token in the answer shows that the model guesses: not where the request forces it."""
    return sampling_of(request, 0).only_argmax and not request.ignore_eos and not request.min_tokens
