#!/usr/bin/env bash
# llguidance reads the numbers of a JSON schema as float64, so it forces large ids to a different id.
#
# Version: llguidance 1.9.1; for comparison jsonschema 4.26.0.
#
# Expected: `{"const": 9007199254740993}` allows 9007199254740993. JSON schema compares numbers by their value. The
# documentation of llguidance promises a grammar that conforms to the schema, or an error, and lists the exceptions;
# this is not one of them.
#
# Seen: const, enum and the four bounds are rounded to the nearest float64 first, with no error and no warning. From
# 2**53 on the value of the schema can be refused and a value that the schema forbids allowed instead:
#
#   {"const": 9007199254740993}                         allows 9007199254740992 and nothing else
#   {"enum": [9007199254740992, 9007199254740993]}      allows 9007199254740992 and nothing else
#   {"type": "integer", "minimum": 9007199254740993}    allows 9007199254740992, too
#   {"type": "integer", "maximum": 9007199254740993}    refuses 9007199254740993
#
# An integer without const, enum or bounds may have any digits, and so may a string. Integers up to 2**53 are exact.
#
# Why it matters: ids with 64 bits, such as those of database rows and messages, are often above 2**53. A model that
# picks one of the ids in an enum is forced to write an id that does not exist, or that of another row, and the answer
# looks complete. Put such ids into the schema as strings, or check the answer against the schema.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile llguidance==1.9.1 jsonschema==4.26.0
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" "$dir/venv/bin/python" - <<'PYTHON'
import json
import sys

from schema_judge import differs

EXACT = 2**53
ODD = EXACT + 1  # the first integer that float64 does not have
TICKET = 1288834974657123329
# Each schema, the values to try, and those of them that llguidance judges wrongly.
CASES = [
    ({"const": ODD}, [EXACT, ODD, ODD + 1], [EXACT, ODD]),
    ({"const": -ODD}, [-EXACT, -ODD], [-EXACT, -ODD]),
    ({"const": TICKET}, [TICKET - 1, TICKET], [TICKET - 1, TICKET]),
    ({"enum": [EXACT, ODD]}, [EXACT, ODD], [ODD]),
    ({"type": "integer", "minimum": ODD}, [EXACT - 1, EXACT, ODD], [EXACT]),
    ({"type": "integer", "maximum": ODD}, [EXACT, ODD, ODD + 1], [ODD]),
    ({"type": "integer", "exclusiveMinimum": ODD}, [EXACT, ODD, ODD + 1], [EXACT, ODD]),
    ({"type": "integer", "exclusiveMaximum": ODD}, [EXACT - 1, EXACT, ODD], [EXACT]),
    ({"const": EXACT}, [EXACT - 1, EXACT, ODD], []),
    ({"type": "integer"}, [EXACT, ODD, TICKET], []),
    ({"const": str(ODD)}, [str(EXACT), str(ODD)], []),
]

changed = False
for schema, values, wrong in CASES:
    changed |= differs(schema, [json.dumps(value) for value in values], [json.dumps(value) for value in wrong])
sys.exit("llguidance treats large integers differently now" if changed else 0)
PYTHON
