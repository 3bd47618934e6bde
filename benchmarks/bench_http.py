"""One stream over HTTP against `VLM.stream`: tokens per second, alternating in one run.

The server is `pocketvlm serve`, so its engine is a process of its own; `supervised` is the same without HTTP. The
client reads lines with http.client and parses each; OpenAI's own client is measured, too. Models: iota, and
SmolLM2-135M Q4_1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
from bench_speed import smollm2

from pocketvlm import VLM
from pocketvlm.system.machine import processor

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Write a long story about a small dog that finds a map."}]
AIM = 0.9
Way = Callable[[int], float]


def speed(pieces: Iterator[Any], tokens: int) -> float:
    """Tokens per second, from the question, which is in the cache, to the last piece."""
    began = time.perf_counter()
    for _ in pieces:
        pass
    return tokens / (time.perf_counter() - began)


def fields(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "ignore_eos": True}


def in_python(vlm: VLM) -> Way:
    return lambda tokens: speed(vlm.stream(ASKED, **fields(tokens)), tokens)


def over_http(port: int) -> Way:
    def chunks(tokens: int) -> Iterator[Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = json.dumps({"messages": ASKED, "stream": True, **fields(tokens)})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
        connection.close()

    return lambda tokens: speed(chunks(tokens), tokens)


def by_openai(port: int) -> Way:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")

    def run(tokens: int) -> float:
        options: Any = {"messages": ASKED, "model": "dummy", "max_tokens": tokens, "extra_body": {"ignore_eos": True}}
        return speed(iter(client.chat.completions.create(stream=True, **options)), tokens)

    return run


@contextmanager
def served(model: Path | None) -> Iterator[int]:
    """The port of a server."""
    command = [
        sys.executable,
        "-c",
        "from pocketvlm.cli import main; main()",
        "serve",
        "--port",
        "0",
        "--parallel",
        "1",
    ]
    command += ["--model", str(model)] if model else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(int(match[1]) for line in process.stdout if (match := re.search(r"http://\S+:(\d+)/v1 ", line)))
        finally:
            process.send_signal(signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    print(processor())
    for name, model, tokens in (("iota", None, 4 * options.tokens), ("SmolLM2-135M Q4_1", smollm2(), options.tokens)):
        with ExitStack() as stack:
            options: dict[str, Any] = {"model": model} if model else {}
            port = stack.enter_context(served(model))
            paths = {
                "VLM.stream": in_python(stack.enter_context(VLM.load(**options))),
                "VLM.stream, supervised": in_python(stack.enter_context(VLM.load(supervised=True, **options))),
                "HTTP": over_http(port),
                "HTTP, openai": by_openai(port),
            }
            rates_of: dict[str, list[float]] = {path: [] for path in paths}
            for run in range(options.runs + 1):
                for path, measure in paths.items():
                    rate = measure(tokens)
                    if run:  # the first warms up
                        rates_of[path].append(rate)
        print(f"{name}, {tokens} tokens, {options.runs} runs")
        for path, rates in rates_of.items():
            ratios = [rate / base for rate, base in zip(rates, rates_of["VLM.stream"], strict=True)]
            print(
                f"  {path:<24} {statistics.median(rates):8.1f} tokens/s   ratio {statistics.median(ratios):.2f}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})" + (f"   aim {AIM}" if path == "HTTP" else "")
            )


if __name__ == "__main__":
    main()
