"""Rounding for given inputs, against GPTQ as its paper has it: with the inverse of a matrix [in, in]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pocketvlm_converters.onnx.rounding import _DAMPING, round_for

Array = npt.NDArray[Any]


def by_the_paper(weights: Array, inputs: Array) -> Array:
    """arXiv 2210.17323, in float64, one column at a time, with the order "by decreasing diagonal"."""
    samples = inputs.astype(np.float64)
    hessian = samples.T @ samples
    hessian += _DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    order = np.argsort(-np.square(samples).sum(0), kind="stable")
    shares = np.linalg.cholesky(np.linalg.inv(hessian[order][:, order])).T
    left, rounded = weights[:, order].astype(np.float64), np.empty(weights.shape, np.int8)
    for number, column in enumerate(order):
        nearest = np.clip(np.rint(left[:, number]), -127, 127)
        rounded[:, column] = nearest
        left[:, number:] -= np.outer((left[:, number] - nearest) / shares[number, number], shares[number, number:])
    return rounded


def example(rows: int, width: int, samples: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((rows, width))
    mixed = rng.standard_normal((samples, 8)) @ rng.standard_normal((8, width))
    inputs = mixed + 0.3 * rng.standard_normal((samples, width)) + 1
    return (weights * 127 / np.abs(weights).max(1, keepdims=True)).astype(np.float32), inputs.astype(np.float32)


@pytest.mark.parametrize(("width", "samples"), [(200, 40), (64, 150), (65, 1)])
def test_as_the_paper(width: int, samples: int) -> None:
    weights, inputs = example(30, width, samples)
    found, wanted = round_for(weights, inputs), by_the_paper(weights, inputs)
    # A number that lies between two integers may go either way, and what follows with it.
    assert (found == wanted).mean() > 0.98


def test_products_are_closer() -> None:
    weights, inputs = example(30, 200, 40)

    def error(rounded: Array) -> float:
        return float(np.square(inputs @ (weights - rounded).T).mean())

    assert error(round_for(weights, inputs)) < error(np.rint(weights)) / 20


def test_inputs_of_zeros_round_to_the_nearest() -> None:
    weights, inputs = example(5, 20, 3)
    assert np.array_equal(round_for(weights, 0 * inputs), np.rint(weights))
