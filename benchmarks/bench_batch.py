"""Concurrent streams: tokens per second against a bare loop, and the pauses of a stream during another's picture.

1. 1, 2, 4 and 8 clients of `VLM.stream`, against a loop over llama_decode with as many sequences in one batch,
   alternating in one run. Language model: SmolLM2-135M Q4_1.
2. One stream runs while another request has a picture of 17 tiles. SmolVLM-256M's shapes, random weights, Q8_0.
   In the same run, a stream with one thread runs next to a loop that only counts: the pauses of the machine itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_speed import smollm2
from checkpoint import random_weights
from PIL import Image

from pocketvlm import VLM
from pocketvlm.engine.interface import EngineOptions, Generation, PrefillDone, Token
from pocketvlm.engine.process.supervisor import SupervisedEngine
from pocketvlm.files.locate import locate
from pocketvlm.messages import ChatRequest
from pocketvlm.native import library
from pocketvlm.native.context import Batch, Context
from pocketvlm.native.llama import Model
from pocketvlm.native.sampler import Sampler, Sampling
from pocketvlm.system.allocator import freeze_garbage_collector
from pocketvlm.system.machine import physical_cores, processor

QUESTION = "Write a long story about a small dog that finds a map."
CLIENTS = (1, 2, 4, 8)
AIMS = {1: 0.95, 4: 0.9}
ENCODERS_SHARE = 17  # tiles of a square picture in full detail
ALONE = 60  # tokens of the stream alone, before the picture and after it
SETTLED = 0.05  # seconds to wait after the picture
LOOP = 12  # seconds next to a counting loop, about as long as a picture


class BareLoop:
    """Only llama_decode and a greedy sampler for each sequence."""

    def __init__(self, path: Path, threads: int, sequences: int, cells: int) -> None:
        self.model = Model(path)
        self.context = Context(self.model, n_ctx=cells, n_batch=512, threads=threads, sequences=sequences)
        self.prompt = self.model.tokenize(QUESTION, special=True)

    def run(self, count: int, clients: int) -> float:
        """Return the tokens per second of all sequences together, after the prompts."""
        lib, context, batch = library.llama(), self.context, Batch(512)
        context.clear()
        tokens = []
        for sequence in range(clients):
            batch.clear()
            batch.extend(self.prompt, 0, sequence)
            context.decode(batch)
            tokens.append(self.prompt[0])
        samplers = [Sampler(self.model, Sampling()) for _ in range(clients)]
        began = time.perf_counter()
        for at in range(len(self.prompt), len(self.prompt) + count):
            batch.clear()
            for sequence, token in enumerate(tokens):
                batch.add(token, at, sequence)
            context.decode(batch)
            tokens = [lib.llama_sampler_sample(sampler.raw, context.raw, i) for i, sampler in enumerate(samplers)]
        return count * clients / (time.perf_counter() - began)


@contextmanager
def opened(path: Path, child: bool, *, drafts: bool = False, **options: Any) -> Iterator[VLM]:
    # No drafts by default: random weights repeat themselves, and many tokens would come in one step.
    options["speculate"] = "auto" if drafts else "off"
    if not child:
        with VLM.load(path, **options) as vlm:
            yield vlm
        return
    located = locate(path, model=None, mmproj=None)
    engine = SupervisedEngine(
        located.model,
        located.mmproj,
        located.onnx,
        name=located.name,
        fingerprint=located.fingerprint,
        options=EngineOptions(**options),
    )
    with VLM(engine) as vlm:
        yield vlm


def ours(vlm: VLM, count: int, clients: int) -> float:
    """Return the tokens per second of all streams, from the first token that all have to the last."""
    ready = threading.Barrier(clients + 1)

    def read() -> int:
        made = 0
        messages = [{"role": "user", "content": QUESTION}]
        bias = {str(token): -100.0 for token in (0, 2)}  # SmolLM2's end tokens, so that the story goes on
        for chunk in vlm.stream(messages, max_tokens=count, logit_bias=bias, stream_options={"include_usage": True}):
            if not made and not chunk.usage:
                made = 1
                ready.wait()
            if chunk.usage:
                made = chunk.usage.completion_tokens
        return made

    with ThreadPoolExecutor(clients) as pool:
        waiting = [pool.submit(read) for _ in range(clients)]
        ready.wait()
        began = time.perf_counter()
        made = sum(one.result() for one in waiting)
        return made / (time.perf_counter() - began)


def batching(rounds: int, count: int, threads: int, child: bool) -> None:
    cells = 512
    print(f"decode, SmolLM2-135M Q4_1, {threads} threads, {count} tokens each, {rounds} rounds")
    print("| clients | bare loop, tokens/s | VLM.stream, tokens/s | ratio | aim |")
    print("|---|---|---|---|---|")
    for clients in CLIENTS:
        bare = BareLoop(smollm2(), threads, clients, cells)
        with opened(smollm2(), child, threads=threads, context_size=cells, parallel=clients) as vlm:
            bare.run(8, clients)
            ours(vlm, 8, clients)
            pairs = [(bare.run(count, clients), ours(vlm, count, clients)) for _ in range(rounds)]
        bare.model.close()
        one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"| {clients} | {one:.1f} | {two:.1f} | {ratio:.3f} | {AIMS.get(clients, '')} |", flush=True)


def picture(number: int) -> Image.Image:
    y, x = np.mgrid[:512, :512] / 512
    waves = np.stack([np.sin((9 + number) * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(12 * x * y + number)], -1)
    return Image.fromarray(np.clip(127.5 + 120 * waves, 0, 255).astype(np.uint8))


def stolen_ms() -> float:
    """Return the CPU time that the host of a virtual machine gave to others; 0 if unknown (proc_stat(5), steal)."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return 1000 * int(fields[8]) / os.sysconf("SC_CLK_TCK")


def messages(text: str, image: Image.Image | None = None) -> list[Any]:
    parts: list[Any] = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image", "image": image, "detail": "high"})
    return [{"role": "user", "content": parts}]


class Stream:
    """A long answer that its own thread reads until `stop`."""

    def __init__(self, vlm: VLM) -> None:
        self.gaps: list[tuple[float, float]] = []  # (when, milliseconds since the token before)
        self._vlm, self._stop = vlm, threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.wait(ALONE)

    def _read(self) -> None:
        last = 0.0
        with closing(self._vlm._engine.generate(request(self._vlm, messages(QUESTION), 1900))) as events:
            for event in events:
                now = time.perf_counter()
                if isinstance(event, Token):
                    if last:
                        self.gaps.append((now, 1000 * (now - last)))
                    last = now
                if self._stop.is_set():
                    return

    def wait(self, tokens: int) -> None:
        before = len(self.gaps)
        while self._thread.is_alive() and len(self.gaps) < before + tokens:
            time.sleep(0.01)

    def stop(self) -> bool:
        """Stop the stream. Return whether the answer had already ended."""
        ended = not self._thread.is_alive()
        self._stop.set()
        self._thread.join()
        return ended


def request(vlm: VLM, messages: list[Any], tokens: int) -> Generation:
    no_end = Sampling(logit_bias=dict.fromkeys(range(4), -100.0))
    return Generation(vlm._prompt(ChatRequest.parse(messages)), no_end, max_tokens=tokens)


def encode(vlm: VLM, image: Image.Image) -> tuple[float, float]:
    """Return the milliseconds to the first token, and those in the encoder."""
    began = time.perf_counter()
    with closing(vlm._engine.generate(request(vlm, messages("What is this?", image), 1))) as events:
        started = next(event for event in events if isinstance(event, PrefillDone))
    assert started.images[0].tiles == ENCODERS_SHARE
    return 1000 * (time.perf_counter() - began), started.images[0].encode_ms


def beside_a_loop(vlm: VLM, seconds: float) -> float:
    """Return the longest pause of a stream, divided by its median alone, while another process only counts."""
    stream = Stream(vlm)
    began = time.perf_counter()
    # It ends with this process, however that ends.
    counting = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"
    loop = subprocess.Popen([sys.executable, "-c", counting])
    time.sleep(seconds)
    ended = time.perf_counter()
    loop.kill()
    loop.wait()
    stream.stop()
    usual = statistics.median(gap for when, gap in stream.gaps[5:] if when < began)
    return max(gap for when, gap in stream.gaps if began < when < ended) / usual


def pauses(bundle: Path, rounds: int, threads: int, child: bool, drafts: bool) -> None:
    with ExitStack() as stack:
        load = partial(opened, bundle, context_size=2048, vision="onnx")
        vlm = stack.enter_context(load(child, drafts=drafts, threads=threads, parallel=2))
        # The effect of the machine on one thread while another uses a core, whatever they compute.
        control = stack.enter_context(load(False, threads=1, parallel=1))
        encode(vlm, picture(0))
        freeze_garbage_collector()  # as the server does; otherwise a collection would be the longest pause
        for number in range(1, rounds + 1):
            floor = beside_a_loop(control, LOOP)
            one, other = picture(2 * number), picture(2 * number + 1)
            alone, alone_encode = encode(vlm, one)
            stream = Stream(vlm)
            began, stolen = time.perf_counter(), stolen_ms()
            during_ms, during_encode = encode(vlm, other)
            ended = time.perf_counter()
            stolen = stolen_ms() - stolen
            stream.wait(ALONE)
            finished, gaps = stream.stop(), stream.gaps
            alone_before = [gap for when, gap in gaps[5:] if when < began]
            alone_after = [gap for when, gap in gaps if when > ended + SETTLED] or alone_before
            first, last = statistics.median(alone_before), statistics.median(alone_after)
            during = [gap for when, gap in gaps if began <= when <= ended]
            # A token takes longer in a longer answer, so the usual time is between before and after.
            usual = [first + (last - first) * place / len(during) for place in range(len(during))]
            times, at = max((gap / known, place) for place, (gap, known) in enumerate(zip(during, usual, strict=True)))
            after_s = [when for when, _ in gaps if began <= when <= ended][at] - began
            during.sort()
            print(
                f"round {number}: a token {first:.1f} ms before, {last:.1f} after (longest {max(alone_before):.1f}, "
                f"{max(alone_after):.1f}); during the picture median {statistics.median(during):.1f}, 99 % "
                f"{during[int(0.99 * len(during))]:.1f}, longest {during[-1]:.1f}: {times:.1f} times (aim 3), "
                f"{after_s:.2f} s after the picture; the host took {stolen:.0f} ms"
                f"{', the stream ended early' * finished}"
            )
            print(f"  one thread next to a loop that only counts, {LOOP} s: longest {floor:.1f} times a token")
            print(
                f"  encode {alone_encode / 1000:.2f} s alone, {during_encode / 1000:.2f} s next to the stream: ratio "
                f"{during_encode / alone_encode:.2f} (aim 1.3); to the first token {alone / 1000:.2f} s and "
                f"{during_ms / 1000:.2f} s: {during_ms / alone:.2f}",
                flush=True,
            )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tokens", type=int, default=150)
    options.add_argument("--threads", type=int, default=physical_cores())
    options.add_argument("--child", action="store_true", help="run the engine in its own process")
    options.add_argument("--bundle", type=Path, help="for the second part; default: random weights")
    options.add_argument(
        "--drafts", action="store_true", help="use drafts in the second part, so that several tokens come at once"
    )
    options.add_argument("--only", choices=["batch", "pause"])
    arguments = options.parse_args()
    print(f"{processor()}, {'child process' if arguments.child else 'this process'}")
    if arguments.only != "pause":
        batching(arguments.rounds, arguments.tokens, arguments.threads, arguments.child)
    if arguments.only == "batch":
        return
    with ExitStack() as stack:
        bundle = arguments.bundle or stack.enter_context(random_weights()).path
        pauses(bundle, arguments.rounds, arguments.threads, arguments.child, arguments.drafts)


if __name__ == "__main__":
    main()
