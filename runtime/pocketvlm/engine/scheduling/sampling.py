"""What follows a prompt: a token drawn from the logits of a step, and how likely it was."""

from __future__ import annotations

import numpy as np

from pocketvlm.engine.interface import Generation, Token, TokenScore
from pocketvlm.errors import RequestError
from pocketvlm.native.context import Context, Logits
from pocketvlm.native.grammar import Matcher
from pocketvlm.native.llama import Model
from pocketvlm.native.sampler import Sampler


def check_sampling(model: Model, generation: Generation) -> None:
    """RequestError where the vocabulary lacks what the request names."""
    for biased in generation.sampling.logit_bias:
        if not 0 <= biased < model.n_vocab:
            raise RequestError(f"token {biased} is not in the vocabulary of {model.n_vocab:,}", "logit_bias")


class TokenSampler:
    """Draws the tokens of one generation. `close` frees what it holds."""

    def __init__(self, model: Model, generation: Generation, matcher: Matcher | None = None) -> None:
        self._model = model
        self._matcher = matcher
        self._sampler = Sampler(model, generation.sampling)
        self._top = generation.top_logprobs
        self._endless = generation.ignore_eos and matcher is None

    def sample(
        self, context: Context, at: int | Logits, *, drafted: int = 0, accepted: bool = False, ms: float = 0.0
    ) -> Token | None:
        """From the logits at an index of the last batch, or from a copy of some; None at the end of the answer."""
        raw = None if self._top is None else _logits(context, at).copy()
        if self._matcher is not None:
            if self._matcher.complete:
                return None
            self._matcher.restrict(_logits(context, at))
        token = self._sampler.sample(context, at) if isinstance(at, int) else self._sampler.choose(at)
        if not self._endless and self._model.is_end(token):
            return None
        if self._matcher is not None:
            self._matcher.accept(token)
        score = None if raw is None else self._score(token, raw)
        return Token(token, self._model.piece(token), score, drafted, accepted, ms)

    @property
    def complete(self) -> bool:
        """Nothing can follow what was drawn."""
        return self._matcher is not None and self._matcher.complete

    def close(self) -> None:
        self._sampler.close()

    def _score(self, token: int, raw: Logits) -> TokenScore:
        assert self._top is not None
        logits = raw.astype(np.float64)
        logits -= logits.max()
        logprobs = logits - np.log(np.exp(logits).sum())
        count = min(self._top, len(logprobs))
        best = np.argpartition(-logprobs, count - 1)[:count] if count else np.empty(0, np.int64)
        best = best[np.argsort(-logprobs[best], kind="stable")]
        top = tuple((int(i), self._model.piece(int(i)), min(0.0, float(logprobs[i]))) for i in best)
        return TokenScore(min(0.0, float(logprobs[token])), top)


def _logits(context: Context, at: int | Logits) -> Logits:
    return context.logits(at, copy=False) if isinstance(at, int) else at
