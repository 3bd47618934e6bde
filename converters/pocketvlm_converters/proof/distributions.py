"""A language model's next-token distributions at every position of some answers, and the KL divergence from them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import BundleError, EngineError
from pocketvlm.native.llama import Model
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.samples.forward import Exchange, answers, context_for

_KEPT_TOKENS = 64  # most likely tokens stored for a position: 240 KB in all, for any vocabulary
_MIN_REST = 1e-12  # probability of all other tokens together, at least this so that its logarithm is finite
# What numpy and zipfile raise for malformed files.
_READ_ERRORS = (
    *(OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error),
    *(RuntimeError, MemoryError, TypeError, AttributeError),
)


@dataclass(frozen=True, eq=False)
class Divergence:
    """The KL divergence in nats over all positions."""

    mean: float
    largest: float
    same_top: float  # share of positions with the same most likely token


@dataclass(frozen=True, eq=False)
class Distributions:
    """The distributions of n positions, each with its k most likely tokens, best first.

    `answers` uint32 [n] are the tokens at the positions; `ids` uint32 [n, k] and `logprobs` float32 [n, k] are the most
    likely tokens. All other tokens together count as one more outcome, so a divergence is never larger than that of the
    complete distributions, and hardly smaller if the k tokens have most of the probability.
    """

    answers: npt.NDArray[np.uint32]
    ids: npt.NDArray[np.uint32]
    logprobs: npt.NDArray[np.float32]

    @classmethod
    def of(cls, model: Path, exchanges: Sequence[Exchange], progress: Progress = silent) -> Distributions:
        """Run the model over the exchanges. Only the logits of one block of positions are in memory at a time."""
        return cls.from_log_probabilities(exchanges, _logs(model, exchanges, progress, "original answers"))

    @classmethod
    def from_log_probabilities(
        cls, exchanges: Sequence[Exchange], blocks: Iterable[npt.NDArray[np.float64]]
    ) -> Distributions:
        """Build from blocks of log probabilities, float64 [positions, n_vocab], of the exchanges' answers in order."""
        ids, logprobs = [], []
        for logs in blocks:
            count = min(_KEPT_TOKENS, logs.shape[1])
            best = np.argpartition(-logs, count - 1, axis=1)[:, :count]
            order = np.argsort(-np.take_along_axis(logs, best, 1), axis=1, kind="stable")
            best = np.take_along_axis(best, order, 1)
            ids.append(best.astype(np.uint32))
            logprobs.append(np.take_along_axis(logs, best, 1).astype(np.float32))
        return cls(_answers(exchanges), np.concatenate(ids), np.concatenate(logprobs))

    def divergence(self, model: Path, exchanges: Sequence[Exchange], progress: Progress = silent) -> Divergence:
        """Return KL(these || the model's). Raises BundleError if the answers or the vocabulary have other tokens."""
        if not np.array_equal(_answers(exchanges), self.answers):
            raise BundleError("the answers have other tokens than at the conversion", model)
        divergences, same, start = [], 0, 0
        for logs in _logs(model, exchanges, progress, "answers"):
            if self.ids.max() >= logs.shape[1]:
                raise BundleError("has another vocabulary than at the conversion", model)
            rows = slice(start, start + len(logs))
            start += len(logs)
            expected, actual = self.logprobs[rows].astype(np.float64), np.take_along_axis(logs, self.ids[rows], 1)
            if expected.shape[1] < logs.shape[1]:
                expected, actual = _with_rest(expected), _with_rest(actual)
            divergences.append((np.exp(expected) * (expected - actual)).sum(axis=1))
            same += int((logs.argmax(axis=1) == self.ids[rows, 0]).sum())
        kl = np.concatenate(divergences)
        mean, largest = (float(np.maximum(value, 0)) for value in (kl.mean(), kl.max()))  # NaN stays NaN
        return Divergence(mean, largest, same / len(kl))

    def save(self, path: Path) -> None:
        np.savez(path, answers=self.answers, ids=self.ids, logprobs=self.logprobs)

    @classmethod
    def load(cls, path: Path) -> Distributions:
        """Read a file written by `save`. Raises BundleError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                loaded = cls(file["answers"], file["ids"], file["logprobs"])
        except _READ_ERRORS as error:
            raise BundleError(f"is not a file of expected answers: {error}", path) from None
        if not loaded._is_consistent():
            raise BundleError("is not a file of expected answers: its arrays do not match", path)
        return loaded

    def _is_consistent(self) -> bool:
        arrays = (self.answers, self.ids, self.logprobs)
        if [getattr(array, "dtype", None) for array in arrays] != [np.uint32, np.uint32, np.float32]:
            return False
        matching = self.answers.shape == self.ids.shape[:1] and self.logprobs.shape == self.ids.shape
        return matching and self.ids.ndim == 2 and self.ids.size > 0 and bool(np.isfinite(self.logprobs).all())


def _logs(
    model: Path, exchanges: Sequence[Exchange], progress: Progress, step: str
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the log probabilities of each block of positions, float64 [positions, n_vocab]."""
    with Model(model, gpu_layers=0, mapped=True) as loaded, context_for(loaded, exchanges) as context:
        for number, exchange in enumerate(exchanges):
            progress(step, number, len(exchanges))
            for _, logits in answers(context, exchange):
                yield log_softmax(logits)
        progress(step, len(exchanges), len(exchanges))


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return log probabilities along the last axis. Raises EngineError for logits that are NaN or +infinity."""
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise EngineError("the language model computes NaN or infinity")
    logs = logits.astype(np.float64)
    logs -= logs.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return logs


def _with_rest(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    rest = np.log(np.maximum(1 - np.exp(logs).sum(axis=1, keepdims=True), _MIN_REST))
    return np.concatenate([logs, rest], axis=1)


def _answers(exchanges: Sequence[Exchange]) -> npt.NDArray[np.uint32]:
    return np.array([token for exchange in exchanges for token in exchange.answer], np.uint32)
