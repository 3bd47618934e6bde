"""Ask libllama what it would allocate for a model and a context, without loading the weights.

libllama reports sizes in log lines only (llama-context.cpp, llama-kv-cache.cpp and llama-model.cpp of the version in
`library.WANTED`).
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pocketvlm.errors import EngineError
from pocketvlm.files.cache_type import CacheType
from pocketvlm.native import log
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model

_MIB = 1 << 20
_CACHE_LINE = re.compile(r"^llama_(?:kv_cache|memory_recurrent)\w*: size = +([\d.]+) MiB")
_SCRATCH_LINE = re.compile(r"(\S+) compute buffer size = +([\d.]+) MiB")
_WEIGHTS_LINE = re.compile(r"load_tensors: +(\S+) model buffer size = +([\d.]+) MiB")
_PLAIN_BUFFERS = ("CPU", "CPU_Mapped")
_PROBE_WIDTH = 256  # values: the largest block of ggml's types


@dataclass(frozen=True)
class BufferSizes:
    """Bytes of the KV cache on all devices, and of scratch memory by the name of the buffer type."""

    cache: int
    scratch: dict[str, int]


def estimate_buffers(
    model: Model, *, n_ctx: int, n_batch: int, sequences: int, outputs: int, cache_type: CacheType = "f16"
) -> BufferSizes:
    """Return the buffers of a `Context` with these arguments over a simulated `model`. Raises EngineError."""
    with log.capture() as lines:
        Context(
            model, n_ctx=n_ctx, n_batch=n_batch, threads=1, sequences=sequences, outputs=outputs, cache_type=cache_type
        ).close()
    caches = [float(match[1]) for line in lines if (match := _CACHE_LINE.search(line))]
    scratch = {match[1]: int(float(match[2]) * _MIB) for line in lines if (match := _SCRATCH_LINE.search(line))}
    if not scratch:
        raise EngineError(f"libllama did not report how much memory {model.path.name} needs")
    return BufferSizes(int(sum(caches) * _MIB), scratch)


@cache
def reordered(type_number: int) -> bool:
    """Return whether libllama copies matrices of a ggml type into an order that is faster on this CPU."""
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as folder, log.capture() as lines:
        path = Path(folder) / "probe.gguf"
        _write_probe(path, type_number)
        Model(path, gpu_layers=0).close()
    return any((match := _WEIGHTS_LINE.search(line)) and match[1] not in _PLAIN_BUFFERS for line in lines)


def _write_probe(path: Path, type_number: int) -> None:
    """Write a model of one layer, all zeros, without a vocabulary."""
    from gguf import GGUFWriter
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(type_number)
    block, size = GGML_QUANT_SIZES[kind]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(_PROBE_WIDTH)
    writer.add_embedding_length(_PROBE_WIDTH)
    writer.add_feed_forward_length(_PROBE_WIDTH)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_PROBE_WIDTH)
    writer.add_tokenizer_model("no_vocab")
    matrix = np.zeros((_PROBE_WIDTH, _PROBE_WIDTH // block * size), np.uint8)
    for name in "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split():
        writer.add_tensor(f"blk.0.{name}.weight", matrix, raw_dtype=kind)
    vector = np.zeros(_PROBE_WIDTH, np.float32)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", vector)
    writer.add_tensor("token_embd.weight", np.zeros((_PROBE_WIDTH, _PROBE_WIDTH), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
