"""The answers of OpenAI's decisions, from decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, StrictBool

from pocketvlm.decisions.decision import Decision, Probability
from pocketvlm.decisions.request import ChoiceQuestion, PredicateQuestion, Question, ScoreQuestion
from pocketvlm.messages import Timings, Usage
from pocketvlm.messages.base import Omitted
from pocketvlm.messages.response import timings_sum, usage_sum


class _Answer(BaseModel):
    """`coverage` is how likely the model is to give one of these answers at all; an extension."""

    model_config = ConfigDict(frozen=True)

    name: str | None
    coverage: Probability


class PredicateAnswer(_Answer):
    type: Literal["predicate"] = "predicate"
    probability: Probability


class OptionProbability(BaseModel):
    value: StrictBool | str
    probability: Probability


class ChoiceAnswer(_Answer):
    """`confidence` is 0 where all choices are equally likely, and 1 where one is certain."""

    type: Literal["choice"] = "choice"
    choice: StrictBool | str
    confidence: Probability
    probabilities: list[OptionProbability]


class LevelProbability(BaseModel):
    value: int
    label: str
    probability: Probability


class ScoreAnswer(_Answer):
    """`score` is the mean of the levels' numbers, which count from 0. `confidence` is as that of a choice."""

    type: Literal["score"] = "score"
    score: float
    confidence: Probability
    probabilities: list[LevelProbability]


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class DecisionUsage(BaseModel):
    """Tokens of all questions together. Nothing is written, so `output_tokens` is 0."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class DecisionResponse(BaseModel):
    """The answers, in the order of the questions."""

    model: str
    system_fingerprint: Omitted[str] = None
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    usage: DecisionUsage
    timings: Timings


def response_of(
    questions: Sequence[Question], decisions: Sequence[Decision], model: str
) -> tuple[DecisionResponse, Usage]:
    """Return the answers to `questions`, and what they took together."""
    usage, timings = decisions[0].usage, decisions[0].timings
    for decision in decisions[1:]:
        usage, timings = usage_sum(usage, decision.usage), timings_sum(timings, decision.timings)
    # The pictures are the same in all of them, and the first saw them first.
    timings = timings.model_copy(update={"images": decisions[0].timings.images})
    tokens, cached = usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens
    response = DecisionResponse(
        model=model,
        system_fingerprint=decisions[0].system_fingerprint,
        answers=[_answer(question, decision) for question, decision in zip(questions, decisions, strict=True)],
        usage=DecisionUsage(
            input_tokens=tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached, cache_write_tokens=tokens - cached),
            total_tokens=tokens,
        ),
        timings=timings,
    )
    return response, usage


def _answer(question: Question, decision: Decision) -> PredicateAnswer | ChoiceAnswer | ScoreAnswer:
    probabilities = list(decision.probabilities.values())
    best, count = max(probabilities), len(probabilities)
    confidence = max(0.0, (best * count - 1) / (count - 1))
    name, coverage = question.name, decision.coverage
    match question:
        case PredicateQuestion():
            return PredicateAnswer(name=name, coverage=coverage, probability=decision.probabilities["yes"])
        case ChoiceQuestion():
            pairs = list(zip(question.choices, probabilities, strict=True))
            return ChoiceAnswer(
                name=name,
                coverage=coverage,
                choice=next(option.value for option, probability in pairs if probability == best),
                confidence=confidence,
                probabilities=[OptionProbability(value=option.value, probability=p) for option, p in pairs],
            )
        case ScoreQuestion():
            return ScoreAnswer(
                name=name,
                coverage=coverage,
                score=sum(value * probability for value, probability in enumerate(probabilities)),
                confidence=confidence,
                probabilities=[
                    LevelProbability(value=value, label=level.label, probability=probability)
                    for value, (level, probability) in enumerate(zip(question.levels, probabilities, strict=True))
                ],
            )
