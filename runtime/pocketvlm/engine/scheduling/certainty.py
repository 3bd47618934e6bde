"""How certain a model is of an answer: the probability of the answer's least likely token."""

from __future__ import annotations

import numpy as np

from pocketvlm.native.context import Logits

_ROWS = 16  # tokens whose logits are kept; with 150,000 tokens in the vocabulary, they take 10 MB


class CertaintyMeter:
    """Measures the tokens of one answer, in the model's own distribution.

    It computes over many rows at once: alone, each would add a twentieth to the step of a small model.
    """

    def __init__(self, n_vocab: int) -> None:
        self._rows = np.empty((_ROWS, n_vocab), np.float32)
        self._tokens: list[int] = []
        self._least = 0.0  # the log probability of the least likely token so far

    def keep(self, logits: Logits) -> None:
        """Copy the logits of the next token, before anything changes them."""
        self._rows[len(self._tokens)] = logits

    def chose(self, token: int) -> None:
        """Note which token these logits led to. Without this, the next ones replace them."""
        self._tokens.append(token)
        if len(self._tokens) == _ROWS:
            self._compute()

    @property
    def certainty(self) -> float:
        """The probability of the least likely token; 1 before the first."""
        self._compute()
        return float(np.exp(self._least))

    def _compute(self) -> None:
        if not self._tokens:
            return
        rows = self._rows[: len(self._tokens)]
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), self._tokens]
        logprobs = chosen - np.log(np.exp(rows).sum(axis=1))
        self._least = min(self._least, float(logprobs.min()))
        self._tokens.clear()
