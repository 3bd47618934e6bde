"""Sample the next token from the logits of a step, and score it."""

from __future__ import annotations

import numpy as np

from pocketvlm.engine.interface import Generation, Token, TokenScore
from pocketvlm.engine.scheduling.certainty import CertaintyMeter
from pocketvlm.errors import RequestError
from pocketvlm.native.context import Context, Logits
from pocketvlm.native.grammar import Matcher
from pocketvlm.native.llama import Model
from pocketvlm.native.sampler import Sampler


def check_sampling(model: Model, generation: Generation) -> None:
    """Raise RequestError where `logit_bias` names a token that is not in the vocabulary."""
    for token in generation.sampling.logit_bias:
        if not 0 <= token < model.n_vocab:
            raise RequestError(f"token {token} is not in the vocabulary of {model.n_vocab:,} tokens", "logit_bias")


class TokenSampler:
    """Samples the tokens of one generation. `close` frees its native sampler."""

    def __init__(self, model: Model, generation: Generation, matcher: Matcher | None = None) -> None:
        self._model = model
        self._matcher = matcher
        self._sampler = Sampler(model, generation.sampling)
        self._top_logprobs = generation.top_logprobs
        self._ignore_eos = generation.ignore_eos and matcher is None
        self._tokens_left = generation.min_tokens if matcher is None else 0  # before the answer may end
        self._meter = CertaintyMeter(model.n_vocab) if generation.measures_certainty else None

    def sample(
        self, context: Context, source: int | Logits, *, drafted: int = 0, accepted: bool = False, ms: float = 0.0
    ) -> Token | None:
        """Sample a token, or return None at the end of the answer.

        `source` is a row of the last batch, or a copy of its logits. `drafted`, `accepted` and `ms` go into the token.
        Raises UnsupportedError where the grammar takes too much work.
        """
        scored = None if self._top_logprobs is None else _logits(context, source).copy()  # before the grammar's mask
        if self._meter is not None:
            self._meter.keep(_logits(context, source))
        if self._matcher is not None:
            if self._matcher.complete:
                return None
            self._matcher.restrict(_logits(context, source))
        if self._tokens_left > 0:
            self._tokens_left -= 1
            _logits(context, source)[self._model.ends] = -np.inf
        token = self._sampler.sample(context, source) if isinstance(source, int) else self._sampler.choose(source)
        if not self._ignore_eos and self._model.is_end(token):
            return None
        if self._matcher is not None:
            self._matcher.accept(token)
        if self._meter is not None:
            self._meter.chose(token)
        score = None if scored is None else self._score(token, scored)
        return Token(token, self._model.piece(token), score, drafted, accepted, ms)

    @property
    def complete(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._matcher is not None and self._matcher.complete

    @property
    def certainty(self) -> float | None:
        """The probability of the least likely token so far, if it is measured."""
        return None if self._meter is None else self._meter.certainty

    def close(self) -> None:
        self._sampler.close()

    def _score(self, token: int, logits: Logits) -> TokenScore:
        assert self._top_logprobs is not None
        shifted = logits.astype(np.float64)
        shifted -= shifted.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        count = min(self._top_logprobs, len(logprobs))
        best = np.argpartition(-logprobs, count - 1)[:count] if count else np.empty(0, np.int64)
        best = best[np.argsort(-logprobs[best], kind="stable")]
        top = tuple((int(i), self._model.piece(int(i)), min(0.0, float(logprobs[i]))) for i in best)
        return TokenScore(min(0.0, float(logprobs[token])), top)


def _logits(context: Context, source: int | Logits) -> Logits:
    return context.logits(source, copy=False) if isinstance(source, int) else source
