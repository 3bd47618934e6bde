"""Prefill and decode with two builds of the native libraries, which take turns, each in a process of its own.

`bench_builds.py FOLDER` compares the libraries in FOLDER (by default of `make wheels`) with llama-cpp-python's own.
The best rounds count, in processor time of one thread, because other programs may run. The model is bench_prefill.py's.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_prefill import VOCABULARY, WIDTHS, write_model

from pocketvlm.native import library
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.weight_layout import WeightLayout

WHEELS = Path(__file__).parent.parent / "build" / "wheels-work" / f"stage-{platform.machine()}/lib/pocketvlm/cpu"
ANSWER = 24  # tokens


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, nargs="?", default=WHEELS)
    options.add_argument("--types", default="Q8_0,Q4_0,Q4_K_M")
    options.add_argument("--layers", type=int, default=3)
    options.add_argument("--rows", type=int, default=256)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.serve:
        take_turns(arguments.serve, arguments.rows)
    elif not arguments.folder.is_dir():
        print(f"{arguments.folder}: there is no other build")
    else:
        print("| type | layout | prefill, tokens/s: own | other | ratio | decode: own | other | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for kind in arguments.types.split(","):
            compare(kind, arguments)


def compare(kind: str, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, kind, WIDTHS["qwen2.5-1.5b"], arguments.layers)
        builds = [start(path, arguments.rows, place) for place in ("", str(arguments.folder))]
        for layout in WeightLayout:
            rounds = [[ask(build, layout) for build in builds] for _ in range(arguments.rounds + 1)][1:]
            cells = []
            for part in range(2):  # prefill, decode
                own, other = (max(turn[build][part] for turn in rounds) for build in range(2))
                cells += [f"{own:.0f}", f"{other:.0f}", f"{other / own:.3f}"]
            print(f"| {kind} | {layout.value} | {' | '.join(cells)} |", flush=True)
        for build in builds:
            build.communicate()


def start(path: Path, rows: int, libraries: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--serve", str(path), "--rows", str(rows)]
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": libraries}
    if not libraries:
        environment["POCKETVLM_NATIVE"] = "llama-cpp-python"
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(build: subprocess.Popen[str], layout: WeightLayout) -> tuple[float, float]:
    assert build.stdin and build.stdout
    print(layout.value, file=build.stdin, flush=True)
    prefill, decode = map(float, build.stdout.readline().split())
    return prefill, decode


def take_turns(path: Path, rows: int) -> None:
    """Measure a layout for each line that comes, and print tokens/s of prefill and decode."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, rows).tolist()
    print(f"{library.build().label}: {library.cpu_code()}, {library.accelerator().kernel}", file=sys.stderr)
    contexts: dict[WeightLayout, Context] = {}
    for line in sys.stdin:
        layout = WeightLayout(line.strip())
        if layout not in contexts:
            model = Model(path, gpu_layers=0, mapped=layout.mapped)
            options = {"n_ctx": 2 * rows, "n_batch": rows, "threads": 1, "outputs": 1}
            contexts[layout] = Context(model, **options, accelerated=layout.accelerated)
        context = contexts[layout]
        context.clear()
        began = time.process_time()
        context.decode_tokens(tokens, 0)
        prefilled = time.process_time()
        for index in range(ANSWER):
            context.decode_token(0, rows + index)
        print(rows / (prefilled - began), ANSWER / (time.process_time() - prefilled), flush=True)


if __name__ == "__main__":
    main()
