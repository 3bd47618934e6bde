"""Time a few layers of a language model on this machine, without its weights.

The time of a layer depends on shapes and types alone, so a file with the model's header and zeros for weights will do.
The file is sparse and takes no disk space.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pocketvlm.files.gguf_header import GGUFHeader, LazyArray
from pocketvlm.files.gguf_values import add_value
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.weight_layout import WeightLayout
from pocketvlm.system.machine import memory
from pocketvlm.system.timing import RepeatedTiming

_LAYER = re.compile(r"blk\.(\d+)\.")
_LAYER_BYTES = 192 << 20  # of the timed layers: more than the caches of a processor hold
_COMPARED_BYTES, _COMPARED_SECONDS = 96 << 20, 1.0  # where layouts are only compared
_COMPARED_VOCABULARY = (
    64  # tokens: the matrices of the vocabulary are the same in all layouts, and would only hide them
)
_COMPARED_LIMIT = 8.0  # seconds for prompts, and for answers, in all layouts: a user waits for the model
_TOKENS, _CELLS = 16, 1024  # tokens of an answer before the cache is cleared; cells of the cache
_PROMPTS = 8  # prompts in a row before the cache is cleared
_PAGE = 32  # GGUF's alignment


@dataclass(frozen=True)
class LayerSpeed:
    """Seconds of a token of a prompt, evaluated in batches, and of a token of an answer.

    Times that vary, or that other programs disturbed, are not `steady`.
    """

    prompt: float
    answer: float
    steady: bool


def benchmark_layers(
    header: GGUFHeader, *, rows: int, threads: int, layout: WeightLayout = WeightLayout.REORDERED
) -> LayerSpeed:
    """Time batches of `rows` tokens and single tokens, and scale the times to all layers.

    Raises ModelError or EngineError where libllama cannot run a part of this model.
    """
    count = _count(header)
    layers = _timed_layers(header, _LAYER_BYTES, 2)  # the half of them needs every kind as well
    layer_counts = [layers] if layers == count else [layers, layers // 2]
    prompts, answers = _time_all(header, [(number, layout) for number in layer_counts], rows, threads)

    def all_layers(timings: list[RepeatedTiming]) -> float:
        if layers == count:
            return timings[0].seconds
        more, fewer = timings[0].seconds, timings[1].seconds
        return more + (count - layers) * max(0.0, more - fewer) / (layers - layers // 2)

    return LayerSpeed(
        all_layers(prompts) / rows, all_layers(answers), all(timing.steady for timing in prompts + answers)
    )


def compare_layouts(
    header: GGUFHeader, layouts: Sequence[WeightLayout], *, rows: int, threads: int
) -> dict[WeightLayout, LayerSpeed]:
    """Time a few layers in each of the layouts, in turns. The times are of these layers, not of the whole model.

    Accelerated ones are at the end of `layouts`. Their answers are those of the others: the accelerator computes only
    prompts.

    Raises ModelError or EngineError where libllama cannot run a part of this model.
    """
    layers = _timed_layers(header, _COMPARED_BYTES, 1)
    answered = [layout for layout in layouts if not layout.accelerated]
    prompts, answers = _time_all(
        header,
        [(layers, layout) for layout in layouts],
        rows,
        threads,
        answered=len(answered),
        enough=_COMPARED_SECONDS,
        vocabulary=_COMPARED_VOCABULARY,
        limit=_COMPARED_LIMIT,
    )
    by_layout = {layout.mapped: answer for layout, answer in zip(answered, answers, strict=True)}
    return {
        layout: _speed(prompt, by_layout.get(layout.mapped, answers[0]), rows)
        for layout, prompt in zip(layouts, prompts, strict=True)
    }


def _speed(prompt: RepeatedTiming, answer: RepeatedTiming, rows: int) -> LayerSpeed:
    return LayerSpeed(prompt.seconds / rows, answer.seconds, prompt.steady and answer.steady)


def _count(header: GGUFHeader) -> int:
    return int(header.metadata[f"{header.architecture}.block_count"])


def _timed_layers(header: GGUFHeader, budget: int, least: int) -> int:
    """Return how many layers to time: about `budget` bytes of them, less where there is not the memory for it.

    They are at least `least` times as many as have every kind of layer.
    """
    count = _count(header)
    size = sum(tensor.n_bytes for tensor in header.tensors if _LAYER.match(tensor.name)) / count
    sizes = memory()
    budget = min(budget, sizes[1] // 4) if sizes else budget
    return min(count, max(least * _layers_of_every_kind(header), int(budget / max(size, 1))))


def _time_all(
    header: GGUFHeader,
    variants: Sequence[tuple[int, WeightLayout]],
    rows: int,
    threads: int,
    *,
    answered: int | None = None,
    enough: float = RepeatedTiming.enough,
    vocabulary: int | None = None,
    limit: float = math.inf,
) -> tuple[list[RepeatedTiming], list[RepeatedTiming]]:
    """Time variants of the model: a number of layers in a layout. Return the times of prompts and of answers' tokens.

    Prompts have `rows` tokens. Tokens of answers are timed for the first `answered` variants, by default for all.
    `vocabulary` is the number of tokens, by default the model's. After `limit` seconds for prompts or answers one time
    of each is enough.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketvlm-")))
        files = {layers: folder / f"{layers}.gguf" for layers, _ in variants}
        for layers, path in files.items():
            _write(path, header, layers, vocabulary)
        contexts = [stack.enter_context(_context(files[layers], layout, rows, threads)) for layers, layout in variants]

        def prompt(context: Context, index: int) -> None:
            context.decode_tokens([0] * rows, index * rows)

        def answer(context: Context, index: int) -> None:
            context.decode_token(0, index)

        prompts = [RepeatedTiming(threads, enough=enough) for _ in contexts]
        answers = [RepeatedTiming(threads, least=8, enough=enough) for _ in contexts[:answered]]
        _time(contexts, prompt, min(_PROMPTS, _CELLS // rows), prompts, limit)
        _time(contexts[:answered], answer, _TOKENS, answers, limit)
    return prompts, answers


def _layers_of_every_kind(header: GGUFHeader) -> int:
    """Return how many first layers have every kind. libllama aborts on a hybrid model that lacks one."""
    interval = header.metadata.get(f"{header.architecture}.full_attention_interval")
    counts = [interval] if isinstance(interval, int) else [1]
    for key in ("head_count_kv", "recurrent_layers"):
        if kinds := header.array(f"{header.architecture}.attention.{key}"):
            counts.append(1 + max(map(kinds.index, set(kinds))))
    return max(counts)


def _time(
    contexts: list[Context],
    work: Callable[[Context, int], None],
    repeats: int,
    timings: list[RepeatedTiming],
    limit: float,
) -> None:
    """Time the contexts in turns, so that disturbances affect all. The first call of a round only warms up."""
    index, end = 0, time.monotonic() + limit
    while any(timing.wanted if time.monotonic() < end else not timing.begun for timing in timings):
        for context, timing in zip(contexts, timings, strict=True):
            if index:
                timing.run(partial(work, context, index))
            else:
                context.clear()
                work(context, index)
        index = (index + 1) % repeats


@contextmanager
def _context(path: Path, layout: WeightLayout, rows: int, threads: int) -> Iterator[Context]:
    model = Model(path, gpu_layers=0, mapped=layout.mapped)
    try:
        yield Context(
            model,
            n_ctx=_CELLS,
            n_batch=max(rows, _TOKENS),
            threads=threads,
            outputs=1,
            accelerated=layout.accelerated,
        )
    finally:
        model.close()


def _write(path: Path, header: GGUFHeader, layers: int, vocabulary: int | None) -> None:
    """Write a model of zeros with the first `layers` layers, as a sparse file. `vocabulary` may shorten matrices."""
    import numpy as np
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType

    arch, count = header.architecture, _count(header)
    writer = GGUFWriter(path, arch)
    for key, value in header.metadata.items():
        if key.startswith(("tokenizer.", "general.", "pocketvlm.", "split.")) or key == f"{arch}.vocab_size":
            continue
        if isinstance(value, LazyArray):
            value = header.array(key)
        if key == f"{arch}.block_count":
            value = layers
        elif isinstance(value, list):
            value = value[:layers] if len(value) == count else value
        if value != []:  # gguf.GGUFWriter cannot write an empty array
            add_value(writer, key, value)
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    known = embedding.shape[-1]
    vocabulary = min(vocabulary or known, known)
    writer.add_uint32(f"{arch}.vocab_size", vocabulary)
    writer.add_tokenizer_model("no_vocab")
    size = 0
    for tensor in header.tensors:
        match = _LAYER.match(tensor.name)
        if match and int(match[1]) >= layers:
            continue
        kind, shape, n_bytes = GGMLQuantizationType(tensor.type), tensor.shape, tensor.n_bytes
        if not match and len(shape) > 1 and shape[-1] == known:
            shape, n_bytes = (*shape[:-1], vocabulary), n_bytes // known * vocabulary
        writer.add_tensor_info(tensor.name, shape[::-1], np.dtype(np.float32), n_bytes, raw_dtype=kind)
        size += -(-n_bytes // _PAGE) * _PAGE
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        start = -(-path.stat().st_size // _PAGE) * _PAGE
        file.truncate(start + size)
