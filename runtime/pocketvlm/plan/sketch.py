"""A language model's drawing to scale: a few of its layers, all zeros, so that this device can be timed with it.

The time of a layer depends on shapes and types alone. The file is sparse and takes no disk.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.devices import memory
from pocketvlm.files.gguf_header import GGUFHeader, LazyArray
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model

_LAYER = re.compile(r"blk\.(\d+)\.")
_ENOUGH = 192 << 20  # bytes of layers: more than the caches of a processor hold
_TOKENS, _RUNS, _CELLS = 16, 3, 1024
_PAGE = 32  # GGUF's alignment


@dataclass(frozen=True)
class Speed:
    """Seconds: of a token of a prompt, evaluated some rows at a time, and of a token of the answer."""

    prompt: float
    answer: float


def time_model(header: GGUFHeader, *, rows: int, threads: int) -> Speed:
    """Raises ModelError or EngineError where libllama cannot be had to run a part of this model."""
    count = int(header.metadata[f"{header.architecture}.block_count"])
    size = sum(tensor.n_bytes for tensor in header.tensors if _LAYER.match(tensor.name)) / count
    known = memory()
    enough = min(_ENOUGH, known[1] // 4) if known else _ENOUGH
    some = min(count, max(2 * _of_every_kind(header), int(enough / max(size, 1))))
    more = _time(header, some, rows, threads)
    if some == count:
        return more
    fewer = _time(header, some // 2, rows, threads)

    def whole(one: float, two: float) -> float:
        return two + (count - some) * max(0.0, two - one) / (some - some // 2)

    return Speed(whole(fewer.prompt, more.prompt), whole(fewer.answer, more.answer))


def _of_every_kind(header: GGUFHeader) -> int:
    """The first layers that have one of each kind: libllama ends the process on a hybrid model that lacks one."""
    key = f"{header.architecture}.attention.head_count_kv"
    heads = header.array(key) or header.metadata.get(key)
    return 1 + max(heads.index(kind) for kind in set(heads)) if isinstance(heads, list) and heads else 1


def _time(header: GGUFHeader, layers: int, rows: int, threads: int) -> Speed:
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as folder:
        path = Path(folder) / "sketch.gguf"
        _write(path, header, layers)
        model = Model(path, gpu_layers=0)
        try:
            context = Context(model, n_ctx=_CELLS, n_batch=max(rows, _TOKENS), threads=threads, outputs=1)
            prompt = _seconds(lambda at: context.decode_tokens([0] * rows, at * rows), min(_RUNS, _CELLS // rows))
            context.clear()
            answer = _seconds(lambda at: context.decode_token(0, at), _TOKENS)
        finally:
            model.close()
    return Speed(prompt / rows, answer)


def _seconds(work: Callable[[int], object], runs: int) -> float:
    """The median, but for the first run, which brings the weights in."""
    taken = []
    for run in range(runs):
        began = time.perf_counter()
        work(run)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:] or taken)


def _write(path: Path, header: GGUFHeader, layers: int) -> None:
    import numpy as np
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType

    arch = header.architecture
    writer = GGUFWriter(path, arch)
    for key, value in header.metadata.items():
        if key.startswith(("tokenizer.", "general.", "pocketvlm.")):
            continue
        if isinstance(value, LazyArray):
            value = header.array(key)
        if key == f"{arch}.block_count":
            writer.add_uint32(key, layers)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value:
            of_layers = len(value) == header.metadata[f"{arch}.block_count"]
            writer.add_array(key, value[:layers] if of_layers else value)
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    if f"{arch}.vocab_size" not in header.metadata:
        writer.add_uint32(f"{arch}.vocab_size", embedding.shape[-1])
    writer.add_tokenizer_model("no_vocab")
    size = 0
    for tensor in header.tensors:
        found = _LAYER.match(tensor.name)
        if found and int(found[1]) >= layers:
            continue
        kind = GGMLQuantizationType(tensor.type)
        writer.add_tensor_info(tensor.name, tensor.shape[::-1], np.dtype(np.float32), tensor.n_bytes, raw_dtype=kind)
        size += -(-tensor.n_bytes // _PAGE) * _PAGE
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        start = -(-path.stat().st_size // _PAGE) * _PAGE
        file.truncate(start + size)
