"""One temperature that calibrates a model's probabilities: fitted on labelled pictures, kept in a file.

Temperature scaling (https://arxiv.org/abs/1706.04599): dividing the logarithms by it changes no decision between two
choices at 0.5, only how sure the model is of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketvlm.decisions.decision import probabilities_of
from pocketvlm.errors import CalibrationError, PocketVLMError, shortened
from pocketvlm.system.atomic import new_file

MIN_EXAMPLES = 10
_BINS = 10
_LEAST, _MOST = 0.05, 20.0  # temperatures
_STEPS = 60  # of the search: each leaves 0.62 of the interval
_FORMAT = 1
_NUMBERS = ("temperature", "error_before", "error_after", "loss_before", "loss_after")


@dataclass(frozen=True)
class Example:
    """The `logprobs` of the choices of a labelled question, and the number of the right one."""

    logprobs: tuple[float, ...]
    answer: int


@dataclass(frozen=True)
class Calibration:
    """The `temperature` of a model's decisions, and what was measured on `examples` labelled questions.

    `fingerprint` names the model's files. The expected calibration errors are those `before`, and `after` with the
    temperature that was fitted on the other half of the examples, so that it is not better than on new ones. The mean
    log losses likewise.
    """

    temperature: float
    model: str
    fingerprint: str
    examples: int
    error_before: float
    error_after: float
    loss_before: float
    loss_after: float

    @classmethod
    def fitted(cls, examples: Sequence[Example], *, model: str, fingerprint: str) -> Calibration:
        """Fit the temperature. Raises PocketVLMError for too few examples."""
        if len(examples) < MIN_EXAMPLES:
            raise PocketVLMError(f"{len(examples)} labelled questions are too few to calibrate; give {MIN_EXAMPLES}")
        halves = examples[::2], examples[1::2]
        crossed = [
            (example, temperature)
            for half, other in (halves, halves[::-1])
            for temperature in (fit_temperature(other),)
            for example in half
        ]
        plain = [(example, 1.0) for example in examples]
        return cls(
            fit_temperature(examples),
            model,
            fingerprint,
            len(examples),
            expected_calibration_error(plain),
            expected_calibration_error(crossed),
            _loss(plain),
            _loss(crossed),
        )

    @classmethod
    def read(cls, path: Path, fingerprint: str) -> Calibration:
        """Read a file that `write` has written for a model. Raises CalibrationError."""
        try:
            values: Any = json.loads(path.read_bytes())
            if values.pop("format") != _FORMAT:
                raise ValueError
            calibration = cls(**{**values, **{name: _number(values[name]) for name in _NUMBERS}})
            if not (isinstance(calibration.model, str) and isinstance(calibration.fingerprint, str)):
                raise TypeError
            if type(calibration.examples) is not int:
                raise TypeError
        except OSError as error:
            raise CalibrationError(f"cannot be read: {error.strerror or error}", path) from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise CalibrationError("is not a calibration; make one with pocketvlm decide --calibrate", path) from None
        if not _LEAST <= calibration.temperature <= _MOST:
            raise CalibrationError(f"has no temperature from {_LEAST} to {_MOST:.0f}", path)
        if calibration.fingerprint != fingerprint:
            raise CalibrationError(f"was made with another model, {shortened(calibration.model)}", path)
        return calibration

    def write(self, path: Path) -> None:
        """Write the file, which appears when it is complete. Raises CalibrationError."""
        try:
            with new_file(path) as file:
                file.write(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1).encode() + b"\n")
        except OSError as error:
            raise CalibrationError(f"cannot be written: {error.strerror or error}", path) from None


def _number(value: object) -> float:
    """Return a number of a file. Raises TypeError for what is none, and ValueError or OverflowError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not math.isfinite(value):
        raise ValueError
    return float(value)


def fit_temperature(examples: Sequence[Example]) -> float:
    """Return the temperature with the least mean log loss, which has one minimum in 1 / temperature."""
    golden = (math.sqrt(5) - 1) / 2
    low, high = math.log(1 / _MOST), math.log(1 / _LEAST)

    def loss(inverse: float) -> float:
        return _loss([(example, math.exp(-inverse)) for example in examples])

    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(right)
    return math.exp(-(low + high) / 2)


def expected_calibration_error(examples: Sequence[tuple[Example, float]]) -> float:
    """Return how far the probability of the likeliest choice is from how often it is right.

    That is the mean over ten equal bins of the probability, weighted by how many examples are in each; every example
    comes with its temperature.
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for example, temperature in examples:
        probabilities = probabilities_of(example.logprobs, temperature)
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        place = min(_BINS - 1, int(probabilities[best] * _BINS))
        bins[place].append((probabilities[best], best == example.answer))
    gaps = (abs(math.fsum(p - right for p, right in one)) for one in bins)
    return math.fsum(gaps) / len(examples)


def _loss(examples: Sequence[tuple[Example, float]]) -> float:
    """Return the mean negative logarithm of the probability of the right choice."""
    losses = (
        -math.log(max(probabilities_of(example.logprobs, temperature)[example.answer], 1e-300))
        for example, temperature in examples
    )
    return math.fsum(losses) / len(examples)
