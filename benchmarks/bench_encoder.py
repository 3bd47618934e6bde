"""Seconds per tile of the vision encoders in one run: SmolVLM-256M shapes, random weights.

libmtmd in llama-cpp-python's default (no flash attention) and in its best setting, ours in float32 and int8. Each has
its own process, so that peak memory can be measured separately; they take turns, tile by tile. The cosine is that of
the worst token, compared with transformers in float32 if installed, else with libmtmd's f32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import checkpoint as shapes
import numpy as np

from pocketvlm.system.machine import physical_cores, processor

TARGET, LIMIT = 0.2, 0.22  # of libmtmd's best
ENCODERS = {
    "libmtmd f32, flash attention off (default)": ("mtmd", "mmproj-f32.gguf", "off"),
    "libmtmd f16, flash attention on": ("mtmd", "mmproj-f16.gguf", "on"),
    "libmtmd q8_0, flash attention on": ("mtmd", "mmproj-q8_0.gguf", "on"),
    "onnxruntime fp32": ("onnx", "vision-fp32.onnx", ""),
    "onnxruntime int8": ("onnx", "vision-int8.onnx", ""),
    "onnxruntime int4": ("onnx", "vision-int4.onnx", ""),
}
PATCHES = (shapes.TILE // shapes.PATCH) ** 2
LAYER = 4 * shapes.VISION**2 + 2 * shapes.VISION * shapes.VISION_INNER  # weights of a layer's matrices
LINEAR = shapes.VISION_LAYERS * LAYER * PATCHES  # multiply-adds
# The part of them that int8 leaves in float: a sixteenth of each MLP's second matrix.
LOUD = shapes.VISION_LAYERS * shapes.VISION * (shapes.VISION_INNER // 16) * PATCHES
ATTENTION = shapes.VISION_LAYERS * 2 * PATCHES**2 * shapes.VISION
ENDS = PATCHES * 3 * shapes.PATCH**2 * shapes.VISION + PATCHES * shapes.VISION * shapes.HIDDEN


def tile() -> Any:
    """A smooth picture with some noise: more like a photo than noise alone."""
    y, x = np.mgrid[: shapes.TILE, : shapes.TILE] / shapes.TILE
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(12 * x * y)], -1)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    return np.clip(127.5 + 127.5 * (waves + noise) / 1.4, 0, 255).astype(np.uint8)


# ---- the processes that encode


def open_mtmd(folder: Path, file: str, flash: str, threads: int) -> Any:
    from pocketvlm.native import library
    from pocketvlm.native.llama import Model
    from pocketvlm.native.mtmd import Mtmd

    module = library.mtmd()
    defaults = module.mtmd_context_params_default

    def params() -> Any:
        parameters = defaults()
        parameters.flash_attn_type = int(flash == "on")
        return parameters

    module.mtmd_context_params_default = params
    # The language model's weights would count as the encoder's memory. Without them it does not know its width.
    model = Model(folder / "model-Q8_0.gguf", vocab_only=True)
    encoder = Mtmd(folder / file, model, threads=threads, tile_tokens=PATCHES // shapes.SHUFFLE**2)
    encoder.width = shapes.HIDDEN
    return encoder


def open_onnx(folder: Path, file: str, threads: int) -> Any:
    from pocketvlm.files.onnx_header import read_onnx
    from pocketvlm.vision.onnx import OnnxEncoder

    return OnnxEncoder(read_onnx(folder / file), threads=threads)


def serve(folder: Path, name: str, threads: int) -> None:
    """A tile for each line on standard input; its seconds on standard output, at the end the peak memory in MB."""
    kind, file, flash = ENCODERS[name]
    encoder = open_mtmd(folder, file, flash, threads) if kind == "mtmd" else open_onnx(folder, file, threads)
    picture, rows = tile(), None
    for _ in sys.stdin:
        began = time.perf_counter()
        rows = encoder.encode_tile(picture)
        print(time.perf_counter() - began, flush=True)
    np.save(folder / f"{file}.npy", rows)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")))


def reference(folder: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder / "checkpoint", dtype=torch.float32).eval()
    pixels = torch.from_numpy(tile()).permute(2, 0, 1).float()[None, None] / 127.5 - 1
    with torch.no_grad():
        np.save(folder / "reference.npy", model.get_image_features(pixels).pooler_output[0].numpy())


# ---- what the machine could do, and where the time goes


def peak(threads: int, rounds: int) -> dict[str, float]:
    """Multiply-adds a second of onnxruntime's largest products, in int8 and float32: the best of several shapes."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    best = {"int8": 0.0, "fp32": 0.0}
    rng = np.random.default_rng(0)
    for rows, inner, columns in ((1024, 768, 3072), (1024, 3072, 768), (2048, 2048, 2048)):
        for kind in best:
            whole = kind == "int8"
            weight = rng.integers(-127, 128, (inner, columns)).astype(np.int8 if whole else np.float32)
            values = rng.integers(0, 256, (rows, inner)).astype(np.uint8 if whole else np.float32)
            types = (TensorProto.UINT8, TensorProto.INT32) if whole else (TensorProto.FLOAT, TensorProto.FLOAT)
            graph = helper.make_graph(
                [helper.make_node("MatMulInteger" if whole else "MatMul", ["a", "b"], ["c"])],
                "peak",
                [helper.make_tensor_value_info("a", types[0], [rows, inner])],
                [helper.make_tensor_value_info("c", types[1], [rows, columns])],
                [numpy_helper.from_array(weight, "b")],
            )
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
            for _ in range(3 + 5 * rounds):
                began = time.perf_counter()
                session.run(None, {"a": values})
                best[kind] = max(best[kind], rows * inner * columns / (time.perf_counter() - began))
    return best


def profile(folder: Path, file: str, threads: int) -> list[tuple[str, float]]:
    """(operator, share of a tile's time), the largest first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(folder / file, options)
    for _ in range(3):
        session.run(None, {"pixels": tile()[None]})
    spent: dict[str, float] = defaultdict(float)
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = sum(spent.values())
    return sorted(((name, value / total) for name, value in spent.items()), key=lambda pair: -pair[1])


def ideal(kind: str, rates: dict[str, float]) -> float:
    """Seconds a tile at the machine's peak: int8 leaves attention, a part of each MLP and both ends in float32."""
    if kind == "int8":
        return (LINEAR - LOUD) / rates["int8"] + (LOUD + ATTENTION + ENDS) / rates["fp32"]
    return (LINEAR + ATTENTION + ENDS) / rates["fp32"]


# ---- all together


def cosine(rows: Any, expected: Any) -> float:
    lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(((rows * expected).sum(-1) / lengths).min())


def alternate(folder: Path, names: list[str], threads: int, rounds: int) -> dict[str, tuple[list[float], float]]:
    """Seconds of every round but the first, and peak MB."""
    command = [sys.executable, __file__, "--folder", str(folder), "--threads", str(threads), "--serve"]
    children = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name, child in children.items():
            assert child.stdin and child.stdout
            child.stdin.write("\n")
            child.stdin.flush()
            times[name].append(float(child.stdout.readline()))
    ended = {name: float(child.communicate()[0]) for name, child in children.items()}
    return {name: (times[name][1:], ended[name]) for name in names}


def make(folder: Path) -> None:
    from pocketvlm_converters.convert import convert

    (folder / "checkpoint").mkdir()
    shapes.write_checkpoint(folder / "checkpoint")
    for number, (mmproj, onnx) in enumerate((("f32", "fp32"), ("f16", "int8"), ("q8_0", "int4"))):
        bundle = convert(
            folder / "checkpoint", folder / f"bundle{number}", quantize="Q8_0", mmproj=mmproj, onnx=onnx, verify=False
        )
        for path in bundle.path.iterdir():
            path.replace(folder / path.name)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=physical_cores())
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--serve", help=argparse.SUPPRESS)
    options.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.serve:
        serve(arguments.folder, arguments.serve, arguments.threads)
        return 0
    if arguments.reference:
        reference(arguments.folder)
        return 0
    with tempfile.TemporaryDirectory(prefix="pocketvlm-bench-") as name:
        folder = arguments.folder or Path(name)
        if not (folder / "manifest.json").exists():
            make(folder)
        return report(folder, arguments.threads, arguments.rounds)


def report(folder: Path, threads: int, rounds: int) -> int:
    measured = alternate(folder, list(ENCODERS), threads, rounds)
    wanted = "mmproj-f32.gguf.npy"
    if find_spec("transformers") and find_spec("torch"):
        command = [sys.executable, __file__, "--folder", str(folder), "--reference"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        wanted = "reference.npy"
    expected = np.load(folder / wanted)
    rates = peak(threads, rounds)
    medians = {name: statistics.median(seconds) for name, (seconds, _) in measured.items()}
    best = min(value for name, value in medians.items() if name.startswith("libmtmd"))
    default = medians[next(iter(ENCODERS))]
    print(f"{processor()}, {threads} threads, {rounds} rounds, a tile of {shapes.TILE}x{shapes.TILE}")
    print(
        f"peak of onnxruntime's products, in G multiply-adds/s: "
        f"int8 {rates['int8'] / 1e9:.0f}, f32 {rates['fp32'] / 1e9:.0f}"
    )
    print("| encoder | s per tile | spread | of default | of libmtmd's best | peak MB | cosine | of machine's peak |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (seconds, memory) in measured.items():
        median, (_, file, _) = medians[name], ENCODERS[name]
        kind = "int8" if file == "vision-int8.onnx" else "fp32"
        share = f"{ideal(kind, rates) / median:.0%}" if "int4" not in name and "q8_0" not in name else "-"
        print(
            f"| {name} | {median:.3f} | {min(seconds):.3f}-{max(seconds):.3f} | {median / default:.2f} "
            f"| {median / best:.2f} | {memory:.0f} | {cosine(np.load(folder / f'{file}.npy'), expected):.6f} "
            f"| {share} |"
        )
    for file in ("vision-int8.onnx", "vision-fp32.onnx"):
        shares = [f"{operator} {share:.0%}" for operator, share in profile(folder, file, threads) if share >= 0.01]
        print(f"{file}, time by operator: {', '.join(shares)}")
    ratio = medians["onnxruntime int8"] / best
    fastest = {name: min(seconds) for name, (seconds, _) in measured.items()}
    quiet = fastest["onnxruntime int8"] / min(value for name, value in fastest.items() if name.startswith("libmtmd"))
    print(
        f"int8 against libmtmd's best: ratio {ratio:.2f}, of the fastest rounds {quiet:.2f} "
        f"(aim {TARGET}, limit {LIMIT})"
    )
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
