"""Guesses of what an answer says next: what followed the same tokens before, in its prompt or in itself. Pure.

Prompt lookup decoding (A. Saxena, 2023): a draft without a second model, for answers that repeat what they were given.
"""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (3, 2)  # of the n-grams that are looked for, longest first
_LONG = 16  # tokens: a match that is longer tells no more
_MEMORY = 0.95  # of what was learned, at each further token
_BEFORE = 4.0  # guesses that the first estimates count for
_RIGHT = (0.0, 0.0, 0.3, 0.5, 0.7, 0.8)  # how often a guess is, before anything is known; by `_class`


class NgramProposer:
    """The tokens of one request, and where each n-gram of them stood last.

    A negative number stands for what is no token, such as a picture; each must be another, so that none is ever found.

    The guess stands after the latest place where the last three tokens stood before, or else the last two. While it
    is right, it moves on with the answer. Each token tells, whether or not a draft was made, how often guesses are
    right after a match of that length.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens = list(prompt)
        self._after: dict[int, dict[tuple[int, ...], int]] = {}
        for size in _SIZES:
            grams = zip(*(prompt[start:] for start in range(size)), strict=False)
            self._after[size] = {gram: at for at, gram in enumerate(grams, size)}  # the latest stays
        self._at: int | None = None  # where the guess stands
        self._match = 0  # tokens before it that are those of the end
        self._right = [_BEFORE * chance for chance in _RIGHT]
        self._made = [_BEFORE] * len(_RIGHT)

    def add(self, token: int) -> None:
        """The answer goes on with `token`."""
        tokens = self._tokens
        guess = self._at
        right = guess is not None and tokens[guess] == token
        if guess is not None:
            kind = _class(self._match)
            self._right[kind] = _MEMORY * self._right[kind] + right
            self._made[kind] = _MEMORY * self._made[kind] + 1
        tokens.append(token)
        end = len(tokens)
        found: int | None = None
        for size in _SIZES:
            if end >= size:
                places, key = self._after[size], tuple(tokens[-size:])
                found = places.get(key) if found is None else found
                places[key] = end
        if right:
            assert guess is not None
            self._at, self._match = guess + 1, self._match + 1
        else:
            self._at = found
            self._match = 0 if found is None else self._matched(found)

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; a passage that ends where the answer does is taken to repeat."""
        found: list[int] = []
        if self._at is not None:
            for at in range(self._at, self._at + most):
                token = self._tokens[at] if at < len(self._tokens) else found[at - len(self._tokens)]
                if token < 0:
                    break
                found.append(token)
        return found

    def chances(self, count: int) -> list[float]:
        """For each of the first `count` tokens of a draft, how likely it and all before it are right."""
        chance, found = 1.0, []
        for match in range(self._match, self._match + count):
            kind = _class(match)
            chance *= self._right[kind] / self._made[kind]
            found.append(chance)
        return found

    def _matched(self, at: int) -> int:
        """How many tokens before `at` are those of the end."""
        tokens = self._tokens
        count = 0
        while count < min(_LONG, at) and tokens[at - 1 - count] == tokens[-1 - count]:
            count += 1
        return count


def _class(match: int) -> int:
    return min(match.bit_length(), len(_RIGHT) - 1)
