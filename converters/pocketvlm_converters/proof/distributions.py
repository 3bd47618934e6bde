"""What a language model expects at every position of some answers, kept small, and how far another is from it."""

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

_MOST = 64  # likeliest tokens that are kept of a position: 240 KB in all, whatever the vocabulary
_FLOOR = 1e-12  # of the rest's mass, so that its logarithm exists
# What numpy and zipfile raise for files that somebody made up.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error),
    *(RuntimeError, MemoryError, TypeError, AttributeError),
)


@dataclass(frozen=True, eq=False)
class Divergence:
    """Over all positions: mean KL in nats, the largest one, share of positions with the same likeliest token."""

    mean: float
    largest: float
    same_top: float


@dataclass(frozen=True, eq=False)
class Distributions:
    """Per position: `answers` uint32 [n], the token that stood there; `ids` uint32 and `logprobs` float32 [n, k].

    The k likeliest tokens, best first; what is left of the mass is one more outcome. A divergence between such
    distributions is never larger than that between the whole ones, and hardly smaller where k tokens hold the mass.
    """

    answers: npt.NDArray[np.uint32]
    ids: npt.NDArray[np.uint32]
    logprobs: npt.NDArray[np.float32]

    @classmethod
    def of(cls, model: Path, exchanges: Sequence[Exchange], progress: Progress = silent) -> Distributions:
        """Run the model over the exchanges. Logits of a block of positions are in memory, never of all."""
        return cls.made_of(exchanges, _logs(model, exchanges, progress, "original answers"))

    @classmethod
    def made_of(cls, exchanges: Sequence[Exchange], blocks: Iterable[npt.NDArray[np.float64]]) -> Distributions:
        """Of log probabilities, float64 [positions, n_vocab] a block, of the exchanges' answers in order."""
        ids, logprobs = [], []
        for logs in blocks:
            count = min(_MOST, logs.shape[1])
            best = np.argpartition(-logs, count - 1, axis=1)[:, :count]
            order = np.argsort(-np.take_along_axis(logs, best, 1), axis=1, kind="stable")
            best = np.take_along_axis(best, order, 1)
            ids.append(best.astype(np.uint32))
            logprobs.append(np.take_along_axis(logs, best, 1).astype(np.float32))
        return cls(_answers(exchanges), np.concatenate(ids), np.concatenate(logprobs))

    def divergence(self, model: Path, exchanges: Sequence[Exchange], progress: Progress = silent) -> Divergence:
        """KL(these || the model's). Raises BundleError where the answers are tokenized otherwise."""
        if not np.array_equal(_answers(exchanges), self.answers):
            raise BundleError("the answers have other tokens than at the conversion", model)
        kls, same, at = [], 0, 0
        for logs in _logs(model, exchanges, progress, "answers"):
            if self.ids.max() >= logs.shape[1]:
                raise BundleError("has another vocabulary than at the conversion", model)
            rows = slice(at, at + len(logs))
            at += len(logs)
            mine, other = self.logprobs[rows].astype(np.float64), np.take_along_axis(logs, self.ids[rows], 1)
            if mine.shape[1] < logs.shape[1]:
                mine, other = _with_rest(mine), _with_rest(other)
            kls.append((np.exp(mine) * (mine - other)).sum(axis=1))
            same += int((logs.argmax(axis=1) == self.ids[rows, 0]).sum())
        kl = np.concatenate(kls)
        mean, largest = (float(np.maximum(value, 0)) for value in (kl.mean(), kl.max()))  # NaN stays NaN
        return Divergence(mean, largest, same / len(kl))

    def save(self, path: Path) -> None:
        np.savez(path, answers=self.answers, ids=self.ids, logprobs=self.logprobs)

    @classmethod
    def load(cls, path: Path) -> Distributions:
        """Raises BundleError for anything but a whole file of this kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = cls(file["answers"], file["ids"], file["logprobs"])
        except _UNREADABLE as error:
            raise BundleError(f"is not a file of expected answers: {error}", path) from None
        if not found._fits():
            raise BundleError("is not a file of expected answers: its arrays do not fit", path)
        return found

    def _fits(self) -> bool:
        arrays = (self.answers, self.ids, self.logprobs)
        if [getattr(array, "dtype", None) for array in arrays] != [np.uint32, np.uint32, np.float32]:
            return False
        same = self.answers.shape == self.ids.shape[:1] and self.logprobs.shape == self.ids.shape
        return same and self.ids.ndim == 2 and self.ids.size > 0 and bool(np.isfinite(self.logprobs).all())


def _logs(
    model: Path, exchanges: Sequence[Exchange], progress: Progress, step: str
) -> Iterator[npt.NDArray[np.float64]]:
    """Log probabilities of each block of positions, float64 [positions, n_vocab]."""
    with Model(model, gpu_layers=0, mapped=True) as loaded, context_for(loaded, exchanges) as context:
        for number, exchange in enumerate(exchanges):
            progress(step, number, len(exchanges))
            for _, logits in answers(context, exchange):
                yield log_softmax(logits)
        progress(step, len(exchanges), len(exchanges))


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Along the last axis. Raises EngineError for logits that are no numbers: every comparison with them is false."""
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise EngineError("the language model computes NaN or infinity")
    logs = logits.astype(np.float64)
    logs -= logs.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return logs


def _with_rest(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    rest = np.log(np.maximum(1 - np.exp(logs).sum(axis=1, keepdims=True), _FLOOR))
    return np.concatenate([logs, rest], axis=1)


def _answers(exchanges: Sequence[Exchange]) -> npt.NDArray[np.uint32]:
    return np.array([token for exchange in exchanges for token in exchange.answer], np.uint32)
