"""Round the weights of a matrix so that the errors of its products cancel out, as GPTQ does (arXiv 2210.17323)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_DAMPING = 0.1  # of the mean square of an input: how much inputs differ from the samples
_BLOCK = 64  # columns; only speed depends on it


def round_for(weights: npt.NDArray[np.float32], inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """Return `weights` [out, in], at most 127 in size, as integers, for inputs like the samples `inputs` [samples, in].

    Columns are rounded one by one, those with the largest inputs first. The error that this causes in the products with
    the samples is passed on to the columns that are still to come. GPTQ computes how much each column gets from the
    inverse of a damped matrix [in, in]. With fewer samples than columns, the same follows from one of [samples,
    samples], by Woodbury's identity.
    """
    columns = inputs.T.astype(np.float64)  # [in, samples]
    power = np.square(columns).sum(axis=1)
    damping = max(_DAMPING * float(power.mean()), float(np.finfo(np.float32).tiny))
    # Of the columns that are still to come, the inverse of damping + columns' * columns.
    inverse = np.linalg.inv(damping * np.eye(len(inputs)) + columns.T @ columns)
    carried = np.zeros((len(weights), len(inputs)), np.float32)  # a column gets its product with this
    rounded = np.empty(weights.shape, np.int8)
    order = np.argsort(-power, kind="stable")
    for block in (order[start : start + _BLOCK] for start in range(0, len(order), _BLOCK)):
        samples = columns[block]
        wanted = (weights[:, block] + carried @ samples.T.astype(np.float32)).T
        nearest, value = np.empty_like(wanted), wanted.copy()
        projected = samples @ inverse
        remaining = np.eye(len(block)) - projected @ samples.T
        shares = np.linalg.cholesky(remaining).T.astype(np.float32)
        for number, share in enumerate(shares):
            nearest[number] = np.clip(np.rint(value[number]), -127, 127)
            error = (value[number] - nearest[number]) / share[number]
            value[number + 1 :] -= np.outer(share[number + 1 :], error)
        rounded[:, block] = nearest.T
        weighted = np.linalg.solve(remaining, projected)
        carried += (wanted - nearest).T @ weighted.astype(np.float32)
        inverse += projected.T @ weighted
    return rounded
