"""A language model's drawing to scale: a few of its layers, all zeros, so that this device can be timed with it.

The time of a layer depends on shapes and types alone. The file is sparse and takes no disk.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pocketvlm.files.gguf_header import GGUFHeader, LazyArray
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.system.machine import memory
from pocketvlm.system.timing import RepeatedTiming

_LAYER = re.compile(r"blk\.(\d+)\.")
_ENOUGH = 192 << 20  # bytes of layers: more than the caches of a processor hold
_TOKENS, _CELLS = 16, 1024
_ROUND = 8  # runs of a prompt, one behind the other, before the cache is cleared
_PAGE = 32  # GGUF's alignment


@dataclass(frozen=True)
class LayerSpeed:
    """Seconds: of a token of a prompt, evaluated some rows at a time, and of a token of the answer.

    Not `steady` where they vary, or other programs had the processor.
    """

    prompt: float
    answer: float
    steady: bool


def benchmark_layers(header: GGUFHeader, *, rows: int, threads: int) -> LayerSpeed:
    """Raises ModelError or EngineError where libllama cannot be had to run a part of this model."""
    count = int(header.metadata[f"{header.architecture}.block_count"])
    size = sum(tensor.n_bytes for tensor in header.tensors if _LAYER.match(tensor.name)) / count
    known = memory()
    enough = min(_ENOUGH, known[1] // 4) if known else _ENOUGH
    some = min(count, max(2 * _of_every_kind(header), int(enough / max(size, 1))))
    sizes = [some] if some == count else [some, some // 2]
    with ExitStack() as stack:
        contexts = [stack.enter_context(_sketched(header, layers, rows, threads)) for layers in sizes]

        def evaluate(context: Context, at: int) -> None:
            context.decode_tokens([0] * rows, at * rows)

        def answer(context: Context, at: int) -> None:
            context.decode_token(0, at)

        prompts = _times(contexts, evaluate, min(_ROUND, _CELLS // rows), [RepeatedTiming(threads) for _ in sizes])
        answers = _times(contexts, answer, _TOKENS, [RepeatedTiming(threads, least=8) for _ in sizes])

    def whole(takes: list[RepeatedTiming]) -> float:
        if some == count:
            return takes[0].seconds
        more, fewer = takes[0].seconds, takes[1].seconds
        return more + (count - some) * max(0.0, more - fewer) / (some - some // 2)

    return LayerSpeed(whole(prompts) / rows, whole(answers), all(take.steady for take in prompts + answers))


def _of_every_kind(header: GGUFHeader) -> int:
    """The first layers that have one of each kind: libllama ends the process on a hybrid model that lacks one."""
    key = f"{header.architecture}.attention.head_count_kv"
    heads = header.array(key) or header.metadata.get(key)
    return 1 + max(heads.index(kind) for kind in set(heads)) if isinstance(heads, list) and heads else 1


def _times(
    contexts: list[Context], work: Callable[[Context, int], None], most: int, takes: list[RepeatedTiming]
) -> list[RepeatedTiming]:
    """In turns, so that what disturbs disturbs all. The first of a round is not timed: it brings the weights in."""
    at = 0
    while any(take.wanted for take in takes):
        for context, take in zip(contexts, takes, strict=True):
            if at:
                take.run(partial(work, context, at))
            else:
                context.clear()
                work(context, at)
        at = (at + 1) % most
    return takes


@contextmanager
def _sketched(header: GGUFHeader, layers: int, rows: int, threads: int) -> Iterator[Context]:
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as folder:
        path = Path(folder) / "sketch.gguf"
        _write(path, header, layers)
        model = Model(path, gpu_layers=0)
        try:
            yield Context(model, n_ctx=_CELLS, n_batch=max(rows, _TOKENS), threads=threads, outputs=1)
        finally:
            model.close()


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
