"""ik_llama.cpp as a program that compare.py compares; see peers.py. It runs in an environment without pocketvlm.

    python benchmarks/ik_peer.py MODEL THREADS CONTEXT

The package's own chat has Gemma's template and a slow loop for each token, so texts are evaluated as they are, and the
likeliest token is taken.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel, make_batch_range

BATCH = 512  # tokens


def text_of(messages: list[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for message in messages for part in message["content"])


def main() -> None:
    path, threads, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    model = IkModel(path)
    context = IkContext(model, n_ctx=size, n_threads=threads)

    def evaluate(tokens: list[int], position: int) -> int:
        """Return the likeliest next token."""
        batch = make_batch_range(tokens, pos_start=position)
        if code := context.decode(batch):
            raise SystemExit(f"llama_decode: {code}")
        api.llama_batch_free(batch)
        return int(np.ctypeslib.as_array(context.get_logits(-1), (model.n_vocab,)).argmax())

    for line in sys.stdin:
        request = json.loads(line)
        prompt = model.tokenize(text_of(request["messages"]))
        context.kv_cache_clear()
        for start in range(0, len(prompt), BATCH):
            token = evaluate(prompt[start : start + BATCH], start)
        for number in range(request["max_tokens"] - 1):
            token = evaluate([token], len(prompt) + number)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": request["max_tokens"]}
        replies.write(json.dumps({"usage": usage}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
