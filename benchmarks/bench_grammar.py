"""Constraining answers to a schema: llguidance against libllama's grammars.

For each vocabulary: how long until the first token can be masked, the mask of one token, and which schemas are taken.
No model runs: the logits are random, so that every kind of token comes up.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from bench_speed import smollm2
from llama_cpp.llama_grammar import json_schema_to_gbnf

from pocketvlm.errors import PocketVLMError
from pocketvlm.files.locate import locate
from pocketvlm.native.grammar import Constraint, Matcher, Vocabulary
from pocketvlm.native.llama import Model
from pocketvlm.structured.schema import compile_schema

STEPS = 200
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,10}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "cc"]}, "maxItems": 4},
        "at": {"$ref": "#/$defs/at"},
    },
    "required": ["name", "age", "tags", "at"],
    "additionalProperties": False,
    "$defs": {"at": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "string"}}}},
}
SCHEMAS: dict[str, Any] = {
    "any object": {"type": "object"},
    "form": FORM,
    "long string": {"type": "string", "maxLength": 2000},
    "enum of 2,000": {"enum": [f"value {i}" for i in range(2000)]},
}
# Keyword -> a schema with it, and an answer that the schema forbids.
FORBIDDEN: dict[str, tuple[dict[str, Any], str]] = {
    "pattern": ({"type": "string", "pattern": "^a+$"}, '"b"'),
    "minimum (number)": ({"type": "number", "minimum": 0.5}, "0.25"),
    "multipleOf": ({"type": "integer", "multipleOf": 3}, "4"),
    "additionalProperties": ({"type": "object", "additionalProperties": False}, '{"a":1}'),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False},
        '{"b":1}',
    ),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, "4"),
    "uniqueItems": ({"type": "array", "items": {"enum": [1]}, "uniqueItems": True}, "[1,1]"),
    "not": ({"type": "integer", "not": {"const": 4}}, "4"),
    "format email": ({"type": "string", "format": "email"}, '"x"'),
}


class Libllama:
    """Its sampler, over a schema that llama-cpp-python turned into GBNF."""

    def __init__(self, model: Model, schema: Any) -> None:
        grammar = json_schema_to_gbnf(json.dumps(schema))
        self.raw = llama_cpp.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")  # type: ignore[arg-type]  # an opaque pointer
        if not self.raw:
            raise ValueError("libllama refuses the grammar")
        self._data = (llama_cpp.llama_token_data * model.n_vocab)()
        view = np.ctypeslib.as_array(self._data)
        self._ids, self._logits = view["id"], view["logit"]
        self._all = llama_cpp.llama_token_data_array(self._data, model.n_vocab, -1, False)

    def restrict(self, logits: Any) -> None:
        self._ids[:] = np.arange(len(logits))
        self._logits[:] = logits
        llama_cpp.llama_sampler_apply(self.raw, ctypes.byref(self._all))
        logits[:] = self._logits

    def accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self.raw, token)


def walk(model: Model, constraint: Any) -> list[float]:
    """Milliseconds of each step."""
    random = np.random.default_rng(0)
    taken = []
    for _ in range(STEPS):
        logits = random.standard_normal(model.n_vocab).astype(np.float32)
        began = time.perf_counter()
        constraint.restrict(logits)
        token = int(logits.argmax())
        ended = model.is_end(token)
        if not ended:
            constraint.accept(token)
        taken.append(1000 * (time.perf_counter() - began))
        if ended or getattr(constraint, "complete", False):
            break
    return taken


def accepts(model: Model, constraint: Any, text: str) -> bool:
    for token in [*model.tokenize(text, special=False), model.eos]:
        logits = np.zeros(model.n_vocab, np.float32)
        constraint.restrict(logits)
        if not np.isfinite(logits[token]):
            return False
        if token != model.eos:
            constraint.accept(token)
            if getattr(constraint, "complete", False):
                return True
    return True


def verdict(model: Model, make: Callable[[Any], Any], schema: Any, wrong: str) -> str:
    try:
        return "LETS IT THROUGH" if accepts(model, make(schema), wrong) else "held"
    except (PocketVLMError, ValueError, RuntimeError) as error:
        return f"refused ({str(error)[:40]})"


def main() -> None:
    iota: Path = locate(None, model=None, mmproj=None).model
    for path in (iota, smollm2()):
        with Model(path, vocab_only=True) as model:
            began = time.perf_counter()
            vocabulary = Vocabulary(model)
            trie = 1000 * (time.perf_counter() - began)
            print(f"{path.name}: {model.n_vocab:,} tokens; llguidance's trie, once: {trie:.0f} ms")

            def guided(schema: Any, vocabulary: Vocabulary = vocabulary) -> Matcher:
                return Matcher(vocabulary, Constraint(f"start: {compile_schema(schema, 'schema').rule}", "schema"))

            def native(schema: Any, model: Model = model) -> Libllama:
                return Libllama(model, schema)

            for name, schema in SCHEMAS.items():
                for label, make in (("llguidance", guided), ("libllama", native)):
                    began = time.perf_counter()
                    try:
                        constraint = make(schema)
                    except ValueError as error:
                        print(f"  {name:14} {label:10} {error}")
                        continue
                    ready_ms = 1000 * (time.perf_counter() - began)
                    taken = walk(model, constraint)
                    print(
                        f"  {name:14} {label:10} ready {ready_ms:6.1f} ms; "
                        f"a token: median {statistics.median(taken):6.3f}, worst {max(taken):.2f} ms of {len(taken)}"
                    )
    with Model(iota, vocab_only=True) as model:
        vocabulary = Vocabulary(model)

        def ours(schema: Any) -> Matcher:
            return Matcher(
                vocabulary, Constraint(f"start: {compile_schema(schema, 'schema', strict=True).rule}", "schema")
            )

        def theirs(schema: Any) -> Libllama:
            return Libllama(model, schema)

        for keyword, (schema, wrong) in FORBIDDEN.items():
            verdicts = [verdict(model, make, schema, wrong) for make in (ours, theirs)]
            print(f"  {keyword:22} llguidance: {verdicts[0]}; libllama: {verdicts[1]}")


if __name__ == "__main__":
    main()
