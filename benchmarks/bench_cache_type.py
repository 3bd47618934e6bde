"""The KV cache in float16 and in q8_0: memory, speed, and how far its answers are from those of float16 and float32.

SmolLM2-135M with real weights, or MODEL.gguf. The text is English (a page of the documentation), evaluated in
batches of 512, and its beginning with a token at a time. The divergence is the mean over all tokens. The types take
turns.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from bench_speed import smollm2

from pocketvlm.files.cache_type import CacheType
from pocketvlm.native import memory_estimate
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.system.machine import physical_cores, processor

TEXT = Path(__file__).parent.parent / "docs" / "usage.md"
TYPES: tuple[CacheType, ...] = ("f32", "f16", "q8_0")
BATCH, ANSWER = 512, 24  # tokens
MEMORY = 8192  # cells whose memory is shown

Logarithms = npt.NDArray[np.float32]  # [tokens, n_vocab]: logarithms of probabilities


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path, nargs="?")
    options.add_argument("--tokens", type=int, default=1536)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=physical_cores())
    arguments = options.parse_args()
    path = arguments.model or smollm2()
    with ExitStack() as stack:
        model = stack.enter_context(Model(path, gpu_layers=0))
        tokens = model.tokenize(TEXT.read_text("utf-8"), special=False, first=True)[: arguments.tokens]
        contexts = {
            kind: stack.enter_context(
                Context(
                    model,
                    n_ctx=len(tokens) + ANSWER,
                    n_batch=BATCH,
                    threads=arguments.threads,
                    cache_type=kind,
                )
            )
            for kind in TYPES
        }
        batches = divergences(contexts, tokens, BATCH)
        single = divergences(contexts, tokens[: len(tokens) // 2], 1)
        speeds = measure(contexts, tokens, arguments.rounds)
    print(f"{processor()}, {arguments.threads} threads; {path.name}, {len(tokens)} tokens of text\n")
    print(f"| cache | MB for {MEMORY:,} cells | KL to f32 | to f16 | by token to f32 | to f16 | prefill | decode |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in TYPES:
        cells = [f"{memory(path, kind) / 1e6:.0f}"]
        cells += [f"{found:.5f}" for found in batches[kind] + single[kind]]
        prefill, decode = speeds[kind]
        print(f"| {kind} | {' | '.join(cells)} | {prefill:.0f} | {decode:.1f} |")


def divergences(
    contexts: dict[CacheType, Context], tokens: list[int], rows: int
) -> dict[CacheType, tuple[float, float]]:
    """Return the mean divergences from float32 and from float16."""
    logarithms = {kind: evaluate(context, tokens, rows) for kind, context in contexts.items()}
    return {
        kind: (divergence(logarithms["f32"], found), divergence(logarithms["f16"], found))
        for kind, found in logarithms.items()
    }


def evaluate(context: Context, tokens: list[int], rows: int) -> Logarithms:
    context.clear()
    logits = []
    for start in range(0, len(tokens), rows):
        part = tokens[start : start + rows]
        context.decode_tokens(part, start, every=True)
        logits += [context.logits(index) for index in range(len(part))]
    values = np.stack(logits)
    values -= values.max(-1, keepdims=True)
    values -= np.log(np.exp(values).sum(-1, keepdims=True))
    return values


def divergence(expected: Logarithms, found: Logarithms) -> float:
    return float((np.exp(expected) * (expected - found)).sum(-1, dtype=np.float64).mean())


def memory(path: Path, kind: CacheType) -> int:
    with Model(path, gpu_layers=0, simulated=True) as model:
        buffers = memory_estimate.estimate_buffers(
            model, n_ctx=MEMORY, n_batch=BATCH, sequences=1, outputs=1, cache_type=kind
        )
    return buffers.cache


def measure(contexts: dict[CacheType, Context], tokens: list[int], rounds: int) -> dict[CacheType, tuple[float, float]]:
    """Return tokens/s of the whole text and of an answer behind it, medians."""
    times: dict[CacheType, list[tuple[float, float]]] = {kind: [] for kind in contexts}
    for _ in range(rounds):
        for kind, context in contexts.items():
            context.clear()
            began = time.perf_counter()
            for start in range(0, len(tokens), BATCH):
                context.decode_tokens(tokens[start : start + BATCH], start)
            read = time.perf_counter()
            for number in range(ANSWER):
                context.decode_token(tokens[number], len(tokens) + number)
            answered = time.perf_counter()
            times[kind].append((len(tokens) / (read - began), ANSWER / (answered - read)))
    return {
        kind: (median(prefill for prefill, _ in of), median(decode for _, decode in of)) for kind, of in times.items()
    }


if __name__ == "__main__":
    main()
