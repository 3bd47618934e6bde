"""A case: a sound file of one kind, and the mutations that damage it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from random import Random
from typing import Any

from fuzz.documents import Mutation, Weights, apply, random_mutations, shown, splice
from fuzz.formats import format_named


@dataclass(frozen=True)
class Original:
    """`format` names a module of `fuzz.formats`."""

    format: str
    data: bytes

    @cached_property
    def document(self) -> Any:
        return format_named(self.format).decode(self.data)

    @cached_property
    def _weights(self) -> Weights:
        return Weights()

    def random_mutations(self, rng: Random) -> list[Mutation]:
        return random_mutations(self.document, rng, len(self.data), self._weights)

    def shown(self, mutations: Sequence[Mutation]) -> list[str]:
        return [shown(self.document, mutation) for mutation in mutations]

    def damaged(self, mutations: Sequence[Mutation]) -> bytes:
        return splice(format_named(self.format).encode(apply(self.document, mutations)), mutations)


@dataclass(frozen=True)
class Case:
    """`original` names a sound file of the kind. `number` is that of the random case, of -1 for one made by hand."""

    kind: str
    original: str
    mutations: Sequence[Mutation]
    number: int = -1

    @classmethod
    def random(cls, kind: str, originals: dict[str, Original], seed: int, number: int) -> Case:
        """Return the same case for the same arguments."""
        rng = Random(f"{seed} {kind} {number}")
        name = rng.choice(sorted(originals))
        return cls(kind, name, originals[name].random_mutations(rng), number)

    @classmethod
    def load(cls, text: str) -> Case:
        known = json.loads(text)
        return cls(**{name: known[name] for name in ("kind", "original", "mutations", "number")})

    def dump(self, **more: Any) -> str:
        return json.dumps({**asdict(self), **more}, indent=1) + "\n"
