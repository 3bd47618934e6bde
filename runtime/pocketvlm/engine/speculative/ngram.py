"""Draft what followed the same tokens before, in the prompt or in the answer itself. Pure.

Prompt lookup decoding (A. Saxena, 2023): drafts without a second model, for answers that repeat their input.
"""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (3, 2)  # tokens of the n-grams to look up, longest first
_MAX_MATCH = 16  # tokens; a longer match makes a draft no likelier
_DECAY = 0.95  # weight of earlier outcomes, at each further one
_PRIOR_WEIGHT = 4.0  # outcomes that the prior counts for
_PRIOR = (0.0, 0.0, 0.3, 0.5, 0.7, 0.8)  # how often a drafted token is accepted, by `_match_class`


class NgramProposer:
    """The tokens of one request, and where each of their n-grams stood last.

    Negative numbers stand for pictures. Each must be different, so that none is ever drafted.

    A draft starts after the latest place where the last three tokens, or else the last two, stood before. While it is
    right, it moves on with the answer. Every token of the answer, drafted or not, teaches how often a draft after a
    match of that length is right.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens = list(prompt)
        # By size: the index after the latest occurrence of each n-gram.
        self._next_index: dict[int, dict[tuple[int, ...], int]] = {}
        for size in _SIZES:
            ngrams = zip(*(prompt[start:] for start in range(size)), strict=False)
            self._next_index[size] = {ngram: index for index, ngram in enumerate(ngrams, size)}
        self._start: int | None = None  # the index where the draft starts
        self._match = 0  # how many tokens before it equal the last ones
        self._right = [_PRIOR_WEIGHT * chance for chance in _PRIOR]
        self._tried = [_PRIOR_WEIGHT] * len(_PRIOR)

    def add(self, token: int) -> None:
        """Append a token of the answer."""
        tokens, start = self._tokens, self._start
        right = start is not None and tokens[start] == token
        if start is not None:
            kind = _match_class(self._match)
            self._right[kind] = _DECAY * self._right[kind] + right
            self._tried[kind] = _DECAY * self._tried[kind] + 1
        tokens.append(token)
        latest = self._look_up()
        if right:
            assert start is not None
            self._start, self._match = start + 1, self._match + 1
        else:
            self._start = latest
            self._match = 0 if latest is None else self._matching(latest)

    def draft(self, limit: int) -> list[int]:
        """Return up to `limit` tokens that may come next.

        A passage that reaches the end of the answer is taken to repeat.
        """
        draft: list[int] = []
        if self._start is not None:
            for index in range(self._start, self._start + limit):
                token = self._tokens[index] if index < len(self._tokens) else draft[index - len(self._tokens)]
                if token < 0:
                    break
                draft.append(token)
        return draft

    def chances(self, count: int) -> list[float]:
        """Return the probability of each of the first `count` drafted tokens that it and all before it are right."""
        chance, chances = 1.0, []
        for match in range(self._match, self._match + count):
            kind = _match_class(match)
            chance *= self._right[kind] / self._tried[kind]
            chances.append(chance)
        return chances

    def _look_up(self) -> int | None:
        """Return the index after the latest earlier place of the longest known n-gram at the end, and note the end."""
        end = len(self._tokens)
        latest: int | None = None
        for size in _SIZES:
            if end >= size:
                next_index, ngram = self._next_index[size], tuple(self._tokens[-size:])
                if latest is None:
                    latest = next_index.get(ngram)
                next_index[ngram] = end
        return latest

    def _matching(self, index: int) -> int:
        """Return how many tokens before `index` equal the last ones."""
        tokens = self._tokens
        count = 0
        while count < min(_MAX_MATCH, index) and tokens[index - 1 - count] == tokens[-1 - count]:
            count += 1
        return count


def _match_class(match: int) -> int:
    return min(match.bit_length(), len(_PRIOR) - 1)
