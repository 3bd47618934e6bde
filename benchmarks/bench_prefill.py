"""Prefill of a prompt and decode, by type and layout of the weights, in one process; the layouts take turns.

A decoder with the widths of Qwen2.5-1.5B (or SmolVLM-256M's) and random weights. The share is that of the int8 peak:
what onnxruntime's MatMulInteger reaches on as many threads. `--alone` runs one thread and takes its processor time,
which other programs disturb less than the time on the clock.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from int8_peak import int8_peak

from pocketvlm.native import library
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.tensor import function
from pocketvlm.native.weight_layout import WeightLayout
from pocketvlm.system.machine import physical_cores, processor

VOCABULARY = 1024
WIDTHS = {"qwen2.5-1.5b": (1536, 8960, 12, 2), "smolvlm-256m": (576, 1536, 9, 3)}  # hidden, inner, heads, of keys
LARGER = ("ffn_down", "attn_v")  # in half of the layers of a K_M file they have a larger type
MIXED = {"Q4_K_M": ("Q4_K", "Q6_K", "Q5_0"), "Q5_K_M": ("Q5_K", "Q6_K", "Q8_0")}  # usual, larger, for odd widths


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--types", default="Q8_0,Q4_0,Q4_K_M")
    options.add_argument("--widths", default="qwen2.5-1.5b", choices=WIDTHS)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--rows", type=int, default=512)
    options.add_argument("--repeat", type=int, default=5)
    options.add_argument("--alone", action="store_true")
    arguments = options.parse_args()
    clock = time.process_time if arguments.alone else time.perf_counter
    threads = 1 if arguments.alone else physical_cores()
    peak = int8_peak(threads, clock)
    kernel = library.accelerator().kernel
    print(f"{processor()}, {threads} threads, accelerator {kernel}, int8 peak {peak / 1e9:.0f} Gop/s\n")
    print("| type | layout | prefill, tokens/s | by llama.cpp's best | by its default | Gop/s | of the peak | decode |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in arguments.types.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            operations = write_model(path, kind, WIDTHS[arguments.widths], arguments.layers)
            speeds = measure(path, arguments.rows, threads, arguments.repeat, clock)
        default = speeds[WeightLayout.REORDERED][0]
        best = max(default, speeds[WeightLayout.PLAIN][0])
        for layout, (prefill, decode) in speeds.items():
            rate = operations * prefill
            print(
                f"| {kind} | {layout.value} | {prefill:.0f} | {prefill / best:.2f} | {prefill / default:.2f} | "
                f"{rate / 1e9:.0f} | {rate / peak:.0%} | {decode:.1f} |",
                flush=True,
            )


def measure(
    path: Path, rows: int, threads: int, repeat: int, clock: Callable[[], float]
) -> dict[WeightLayout, tuple[float, float]]:
    """Return tokens/s of prefill and decode, medians of `repeat` rounds after one that warms up."""
    times: dict[WeightLayout, list[tuple[float, float]]] = {layout: [] for layout in WeightLayout}
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, rows).tolist()
    with ExitStack() as stack:
        contexts = {}
        for layout in WeightLayout:
            model = stack.enter_context(Model(path, gpu_layers=0, mapped=layout.mapped))
            context = Context(
                model, n_ctx=2 * rows, n_batch=rows, threads=threads, outputs=1, accelerated=layout.accelerated
            )
            contexts[layout] = stack.enter_context(context)
        for _ in range(repeat + 1):
            for layout, context in contexts.items():
                context.clear()
                began = clock()
                context.decode_tokens(tokens, 0)
                prefilled = clock()
                for index in range(8):
                    context.decode_token(0, rows + index)
                times[layout].append((rows / (prefilled - began), 8 / (clock() - prefilled)))
    median = statistics.median
    return {
        layout: (median(prefill for prefill, _ in runs[1:]), median(decode for _, decode in runs[1:]))
        for layout, runs in times.items()
    }


def write_model(path: Path, kind: str, widths: tuple[int, int, int, int], layers: int) -> int:
    """Write a model, and return its operations for a token of a prompt: two for each weight of the layers."""
    hidden, inner, heads, kv_heads = widths
    keys = hidden // heads * kv_heads
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    shapes = {"attn_q": (hidden, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden)}
    shapes |= {"attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden)}
    shapes["ffn_down"] = (hidden, inner)
    for layer in range(layers):
        for name, (rows, width) in shapes.items():
            type_ = tensor_type(kind, name, width, layer)
            writer.add_tensor(f"blk.{layer}.{name}.weight", random_rows(type_, rows, width), raw_dtype=type_)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    embeddings = np.random.default_rng(0).standard_normal((VOCABULARY, hidden), np.float32)
    writer.add_tensor("token_embd.weight", embeddings)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = {name: rows * width for name, (rows, width) in shapes.items()}
    last = sum(size for name, size in weights.items() if name.startswith("ffn"))  # computed for the last row alone
    return 2 * (layers * sum(weights.values()) - last)


def tensor_type(kind: str, name: str, width: int, layer: int) -> GGMLQuantizationType:
    usual, larger, odd = MIXED.get(kind, (kind, kind, "Q8_0"))
    chosen = larger if name in LARGER and layer % 2 else usual
    whole = width % GGML_QUANT_SIZES[GGMLQuantizationType[chosen]][0] == 0
    return GGMLQuantizationType[chosen if whole else odd]


def random_rows(kind: GGMLQuantizationType, rows: int, width: int) -> np.ndarray:
    """Return quantized rows; 64 different ones, because quantizing takes time."""
    values = np.random.default_rng(rows).standard_normal((64, width), np.float32) * np.float32(0.02)
    block, size = GGML_QUANT_SIZES[kind]
    packed = np.zeros((64, width // block * size), np.uint8)
    number, address = ctypes.c_int64, ctypes.c_void_p
    quantize = function(
        "ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int, address, address, number, number, number, address
    )
    quantize(int(kind), values.ctypes.data, packed.ctypes.data, 0, 64, width, None)
    return np.tile(packed, (-(-rows // 64), 1))[:rows]


if __name__ == "__main__":
    main()
