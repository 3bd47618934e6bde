"""What libllama would allocate for a model and a context, told by itself, without the weights being loaded.

It tells by log lines only (llama-context.cpp, llama-kv-cache.cpp, llama-model.cpp of the version that is bound here).
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pocketvlm.errors import EngineError
from pocketvlm.native import library, log
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model

_MIB = 1 << 20
_CACHE = re.compile(r"^llama_(?:kv_cache|memory_recurrent)\w*: size = +([\d.]+) MiB")
_SCRATCH = re.compile(r"(\S+) compute buffer size = +([\d.]+) MiB")
_REORDERED = re.compile(r"load_tensors: +(\S+) model buffer size = +([\d.]+) MiB")
_WIDTH = 256  # the largest block of ggml's types


@dataclass(frozen=True)
class BufferSizes:
    """Bytes: of the KV cache, wherever it is, and of scratch memory by the name of the device's buffers."""

    cache: int
    scratch: dict[str, int]


def estimate_buffers(
    model: Model, *, n_ctx: int, n_batch: int, sequences: int, outputs: int, exact: bool = False
) -> BufferSizes:
    """Make a context of a simulated model."""
    with log.heard() as lines:
        Context(
            model, n_ctx=n_ctx, n_batch=n_batch, threads=1, sequences=sequences, outputs=outputs, exact=exact
        ).close()
    caches = [float(found[1]) for line in lines if (found := _CACHE.search(line))]
    scratch = {found[1]: int(float(found[2]) * _MIB) for line in lines if (found := _SCRATCH.search(line))}
    if not scratch:
        raise EngineError(f"libllama did not tell what memory it takes for {model.path.name}")
    return BufferSizes(int(sum(caches) * _MIB), scratch)


@cache
def reordered(type_number: int) -> bool:
    """Whether matrices of a ggml type are copied into an order that this CPU likes better, when a model is loaded."""
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as folder, log.heard() as lines:
        path = Path(folder) / "probe.gguf"
        _write_probe(path, type_number)
        Model(path, gpu_layers=0).close()
    library.llama()
    plain = ("CPU", "CPU_Mapped")
    return any((found := _REORDERED.search(line)) and found[1] not in plain for line in lines)


def _write_probe(path: Path, type_number: int) -> None:
    """A model of one layer, all zeros, without a vocabulary."""
    from gguf import GGUFWriter
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(type_number)
    block, size = GGML_QUANT_SIZES[kind]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(_WIDTH)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_WIDTH)
    writer.add_tokenizer_model("no_vocab")
    matrix = np.zeros((_WIDTH, _WIDTH // block * size), np.uint8)
    for name in "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split():
        writer.add_tensor(f"blk.0.{name}.weight", matrix, raw_dtype=kind)
    vector = np.zeros(_WIDTH, np.float32)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", vector)
    writer.add_tensor("token_embd.weight", np.zeros((_WIDTH, _WIDTH), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
