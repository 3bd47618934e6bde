"""A decision: the probability of each choice, and how it follows from the scores of the texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pocketvlm.decisions.choices import Choices, Kind
from pocketvlm.errors import RequestError, quoted
from pocketvlm.messages import Timings, Usage
from pocketvlm.messages.base import Omitted

Probability = Annotated[float, Field(ge=0, le=1)]


class Decision(BaseModel):
    """How likely each choice is, if the answer is one of them: `probabilities` sum up to 1.

    `choice` is the likeliest. `logprobs` are the natural logarithms of the probabilities that the model's whole answer
    is this text, and `coverage` is the sum of these probabilities: where it is small, the model would rather answer
    something else. `expectation` is the mean number of a scale. `temperature` is that of the calibration; 1 without.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    choice: str
    probabilities: dict[str, Probability]
    logprobs: dict[str, float]
    coverage: Probability
    expectation: Omitted[float] = None
    temperature: float = 1.0
    model: str
    system_fingerprint: str | None = None
    usage: Usage
    timings: Timings

    @property
    def probability(self) -> float:
        """The probability of yes, or that of the likeliest choice."""
        return self.probabilities["yes" if self.kind == "yes_no" else self.choice]


def logprobs_of(choices: Choices, scores: Sequence[float]) -> list[float]:
    """Return the logarithm of the probability of each choice: that of all its texts together.

    `scores` are those of `choices.flat`. Raises RequestError for a choice that the model cannot write.
    """
    left = iter(scores)
    logprobs = [_log_sum([next(left) for _ in texts]) for texts in choices.texts]
    for number, logprob in enumerate(logprobs):
        if logprob == -math.inf:
            name = quoted(choices.names[number])
            raise RequestError(f"the model cannot answer {name}: its vocabulary lacks it", choices.path(number))
    return logprobs


def probabilities_of(logprobs: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return the probabilities of choices among themselves."""
    scaled = [logprob / temperature for logprob in logprobs]
    total = _log_sum(scaled)
    return [math.exp(one - total) for one in scaled]


def decided(
    choices: Choices,
    scores: Sequence[float],
    *,
    temperature: float,
    model: str,
    fingerprint: str | None,
    usage: Usage,
    timings: Timings,
) -> Decision:
    """Return the decision that the `scores` of `choices.flat` make."""
    logprobs = logprobs_of(choices, scores)
    probabilities = probabilities_of(logprobs, temperature)
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    expectation = None
    if choices.numbers:
        expectation = math.fsum(p * number for p, number in zip(probabilities, choices.numbers, strict=True))
    return Decision(
        kind=choices.kind,
        choice=choices.names[best],
        probabilities=dict(zip(choices.names, probabilities, strict=True)),
        logprobs=dict(zip(choices.names, logprobs, strict=True)),
        coverage=min(1.0, math.fsum(map(math.exp, logprobs))),
        expectation=expectation,
        temperature=temperature,
        model=model,
        system_fingerprint=fingerprint,
        usage=usage,
        timings=timings,
    )


def _log_sum(values: Sequence[float]) -> float:
    """Return the logarithm of the sum of what these are logarithms of."""
    if (most := max(values)) == -math.inf:
        return most
    return most + math.log(math.fsum(math.exp(value - most) for value in values))
