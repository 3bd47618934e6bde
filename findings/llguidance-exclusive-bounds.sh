#!/usr/bin/env bash
# llguidance allows the excluded bound itself when both bounds of a number begin with the same integer.
#
# Version: llguidance 1.9.1; for comparison jsonschema 4.26.0.
#
# Expected: `{"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}` does not allow 0. `exclusiveMinimum` means more
# than the bound, `exclusiveMaximum` less.
#
# Seen: it allows `0`, with no error and no warning. It refuses `0.0`, which is the same number. This happens when the
# excluded bound is an integer and the other bound has the same integer part and is a fraction. By reading, the grammar
# then makes the whole fraction optional, whether or not the bound is excluded.
#
#   exclusiveMinimum 0, maximum or exclusiveMaximum 0.5    allows 0
#   exclusiveMinimum 7, maximum 7.5                        allows 7
#   minimum -7.5, exclusiveMaximum -7                      allows -7
#   exclusiveMinimum 0, maximum 1 or 1.5 or none           refuses 0
#   exclusiveMinimum 0.5, maximum 0.75                     refuses 0.5
#
# Why it matters: rates, probabilities and step sizes often have to be more than 0 and less than a fraction, so that a
# program can divide by them or take their logarithm. A model that means "none" writes `0`. Use `minimum` with the
# smallest value that makes sense, or check the answer against the schema. A test with a maximum of 1 does not show it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile llguidance==1.9.1 jsonschema==4.26.0
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" "$dir/venv/bin/python" - <<'PYTHON'
import sys

from schema_judge import differs

# The bounds, the texts to try, and those of them that llguidance allows although the schema excludes them.
CASES = [
    ({"exclusiveMinimum": 0, "maximum": 0.5}, "0 0.0 0.1 0.5", ["0"]),
    ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, "0 0.0 0.1 0.5", ["0"]),
    ({"exclusiveMinimum": 0, "maximum": 0.001}, "0 0.0 0.001", ["0"]),
    ({"exclusiveMinimum": 7, "maximum": 7.5}, "7 7.0 7.1 7.5", ["7"]),
    ({"minimum": -7.5, "exclusiveMaximum": -7}, "-7.5 -7.1 -7.0 -7", ["-7"]),
    ({"exclusiveMinimum": 0}, "0 0.0 0.1", []),
    ({"exclusiveMinimum": 0, "maximum": 1}, "0 0.0 0.1 1", []),
    ({"exclusiveMinimum": 0, "maximum": 1.5}, "0 0.0 0.1 1.5", []),
    ({"exclusiveMinimum": 7, "maximum": 8.5}, "7 7.0 7.1 8.5", []),
    ({"exclusiveMinimum": 0.5, "maximum": 0.75}, "0.5 0.50 0.6 0.75", []),
    ({"minimum": 0.001, "maximum": 0.5}, "0 0.0 0.001 0.5", []),
]

changed = False
for bounds, texts, wrong in CASES:
    changed |= differs({"type": "number", **bounds}, texts.split(), wrong)
sys.exit("llguidance treats exclusive bounds differently now" if changed else 0)
PYTHON
