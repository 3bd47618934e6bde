"""Random schemas, and random walks through what the grammar lets a model write: each finished text must be valid."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from byte_grammar import BYTES, matcher
from pocketvlm.structured.schema import CompiledSchema, compile_schema

MAX_BYTES = 600
NAMES = ["a", "b", "kind", "long name", 'quo"te', "é", "back\\slash"]
PIECES = [
    '[^"]',
    "[^\\\\]",
    "[^a-z]",
    "\\D",
    "\\W",
    "\\S",
    "\\s",
    ".",
    "[\\w-]",
    "[!-~]",
    "(?:a|b)",
    "\\d",
    '["\\\\]',
    "é",
    "x",
]
COUNTS = ["", "", "*", "+", "?", "{2}", "{1,3}"]


def pattern(rng: random.Random) -> str:
    body = "".join(rng.choice(PIECES) + rng.choice(COUNTS) for _ in range(rng.randint(1, 3)))
    return rng.choice(["^{}$", "^{}$", "^{}", "{}$", "{}", "^(?:{}|x)$"]).format(body)


def number(rng: random.Random, kind: str) -> dict[str, Any]:
    low = rng.choice([-50, -1, 0, 3, 7]) if kind == "integer" else rng.choice([-1.5, 0, 0.1, 8, -3])
    schema: dict[str, Any] = {"type": kind, rng.choice(["minimum", "exclusiveMinimum"]): low}
    if rng.random() < 0.7:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.choice(
            [0.5, 2, 40] if kind == "number" else [3, 40]
        )
    if rng.random() < 0.2:
        schema["multipleOf"] = rng.choice([2, 0.5]) if kind == "number" else rng.choice([2, 3])
    return schema if rng.random() < 0.8 else {"type": kind}


def plain(rng: random.Random) -> Any:
    match rng.randrange(9):
        case 0:
            return {"type": rng.choice(["boolean", "null", "string"])}
        case 1 | 2:
            return number(rng, rng.choice(["integer", "number"]))
        case 3 | 4:
            limits = {"maxLength": 8} if rng.random() < 0.5 else {}
            return {"type": "string", "pattern": pattern(rng), **limits}
        case 5:
            return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 5)}
        case 6:
            return {"type": "string", "format": rng.choice(["date", "time", "date-time", "uuid", "ipv4"])}
        case 7:
            return {"enum": rng.sample([*NAMES, 1, -2.5, None, True, 2**53 + 1, [1, "x"], {"k": 0}], rng.randint(1, 4))}
        case _:
            return {"$ref": "#/$defs/shared"}


def tagged(rng: random.Random, depth: int) -> dict[str, Any]:
    parts = []
    for name in ("cat", "dog"):
        part = objects(rng, depth)
        part.setdefault("properties", {})["kind"] = {"const": name}
        part.pop("maxProperties", None)
        parts.append(part)
    return {"oneOf": parts}


def objects(rng: random.Random, depth: int) -> dict[str, Any]:
    properties = {name: schema(rng, depth - 1) for name in rng.sample(NAMES, rng.randint(0, 3))}
    made: dict[str, Any] = {"type": "object", "properties": properties}
    made["required"] = [name for name in properties if rng.random() < 0.6]
    if rng.random() < 0.2:
        made["additionalProperties"] = rng.choice([False, schema(rng, depth - 1)])
    if rng.random() < 0.15:
        made["patternProperties"] = {rng.choice(['^[^"]$', "^p[^\\\\]$", "^[pq]\\d$"]): schema(rng, depth - 1)}
    if rng.random() < 0.1:
        made[rng.choice(["minProperties", "maxProperties"])] = rng.randint(0, 2)
    if rng.random() < 0.15:
        made["anyOf"] = [{"required": [name]} for name in properties] or [{}]
    if rng.random() < 0.15:
        made["allOf"] = [{"properties": {"b": schema(rng, depth - 1)}}, {"$ref": "#/$defs/base"}]
    return made


def schema(rng: random.Random, depth: int) -> Any:
    if depth <= 0 or rng.random() < 0.35:
        return plain(rng)
    match rng.randrange(7):
        case 0 | 1 | 2:
            return objects(rng, depth)
        case 3:
            return {"type": "array", "items": schema(rng, depth - 1), "minItems": rng.randint(0, 1), "maxItems": 2}
        case 4:
            items = [schema(rng, depth - 1) for _ in range(rng.randint(1, 2))]
            return {"type": "array", "prefixItems": items, "minItems": len(items)}
        case 5:
            return {"anyOf": [schema(rng, depth - 1) for _ in range(rng.randint(1, 2))]}
        case _:
            return tagged(rng, depth)


def walk(compiled: CompiledSchema, rng: random.Random) -> str | None:
    """Write what the masks allow, byte by byte; None where that has no end, or where nothing fits the schema."""
    state = matcher(compiled)
    text = bytearray()
    mask = np.zeros((BYTES.vocab_size + 31) // 32, np.int32)
    while not state.is_error():
        if state.is_accepting() and (state.is_stopped() or rng.random() < 0.3):
            return text.decode()
        if len(text) > MAX_BYTES or state.is_stopped():
            return None
        state.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:256]).tolist()
        if not allowed:
            return None
        ends = [byte for byte in allowed if byte in b'"}]']
        common = [byte for byte in allowed if byte in b'ab1.\\"-x{[ ' or byte == 0xC3]
        draw = rng.random()
        choices = ends if ends and draw < (0.35 if len(text) < 100 else 0.8) else common if draw < 0.8 else allowed
        byte = rng.choice(choices or allowed)
        state.consume_token(byte)
        text.append(byte)
    return None


def check(seed: int) -> int:
    """Return how many texts were finished."""
    rng = random.Random(seed)
    made = {
        **objects(rng, 3),
        "$defs": {
            "shared": plain(random.Random(seed + 1)) if seed % 3 else {"enum": ["s", 1.5, True]},
            "base": {"type": "object", "properties": {"a": {"type": ["string", "integer"]}}},
        },
    }
    if made["$defs"]["shared"] == {"$ref": "#/$defs/shared"}:
        made["$defs"]["shared"] = True
    compiled = compile_schema(made, "schema")
    assert not {path.rpartition(".")[2] for path in compiled.left_out} - {
        "minProperties",
        "maxProperties",
        "oneOf",
        "enum",
    }
    if compiled.left_out:
        return 0
    validator = jsonschema.Draft202012Validator(made, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    texts = [text for _ in range(6) if (text := walk(compiled, rng)) is not None]
    for text in texts:
        value = json.loads(text)
        errors = [error.message for error in validator.iter_errors(value)]
        assert not errors, (seed, text, errors, made)
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
        assert not re.search(r"\s", re.sub("(?<=[:,]) ", "", outside)), text
    return len(texts)


# Among them seeds that fail where a class, a number, a constant or a oneOf is passed on as it is.
@pytest.mark.parametrize("seed", [0, 1, 5, 11, 22, 23, 24, 34, 47, 71])
def test_every_finished_text_is_valid(seed: int) -> None:
    check(seed)


@pytest.mark.slow
def test_two_hundred_schemas() -> None:
    assert sum(check(seed) for seed in range(200)) > 900
