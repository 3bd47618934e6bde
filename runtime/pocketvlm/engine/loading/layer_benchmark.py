"""Time a few layers of a language model on this machine, without its weights.

The time of a layer depends on shapes and types alone, so a file with the model's header and zeros for weights will do.
The file is sparse and takes no disk space.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pocketvlm.files.gguf_header import GGUFHeader, LazyArray
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.weight_layout import WeightLayout
from pocketvlm.system.machine import memory
from pocketvlm.system.timing import RepeatedTiming

_LAYER = re.compile(r"blk\.(\d+)\.")
_LAYER_BYTES = 192 << 20  # of the timed layers: more than the caches of a processor hold
_COMPARED_BYTES, _COMPARED_SECONDS = 96 << 20, 1.0  # where layouts are only compared
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
    layers = _timed_layers(header, _LAYER_BYTES)
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
    layers = _timed_layers(header, _COMPARED_BYTES)
    answered = [layout for layout in layouts if not layout.accelerated]
    prompts, answers = _time_all(
        header,
        [(layers, layout) for layout in layouts],
        rows,
        threads,
        answered=len(answered),
        enough=_COMPARED_SECONDS,
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


def _timed_layers(header: GGUFHeader, budget: int) -> int:
    """Return how many layers to time: about `budget` bytes of them, less where there is not the memory for it."""
    count = _count(header)
    size = sum(tensor.n_bytes for tensor in header.tensors if _LAYER.match(tensor.name)) / count
    sizes = memory()
    budget = min(budget, sizes[1] // 4) if sizes else budget
    return min(count, max(2 * _layers_of_every_kind(header), int(budget / max(size, 1))))


def _time_all(
    header: GGUFHeader,
    variants: Sequence[tuple[int, WeightLayout]],
    rows: int,
    threads: int,
    *,
    answered: int | None = None,
    enough: float = RepeatedTiming.enough,
) -> tuple[list[RepeatedTiming], list[RepeatedTiming]]:
    """Time variants of the model: a number of layers in a layout. Return the times of prompts and of answers' tokens.

    Prompts have `rows` tokens. Tokens of answers are timed for the first `answered` variants, by default for all.
    """
    with ExitStack() as stack:
        contexts = [
            stack.enter_context(_context_of_zeros(header, layers, layout, rows, threads)) for layers, layout in variants
        ]

        def prompt(context: Context, index: int) -> None:
            context.decode_tokens([0] * rows, index * rows)

        def answer(context: Context, index: int) -> None:
            context.decode_token(0, index)

        prompts = [RepeatedTiming(threads, enough=enough) for _ in contexts]
        answers = [RepeatedTiming(threads, least=8, enough=enough) for _ in contexts[:answered]]
        _time(contexts, prompt, min(_PROMPTS, _CELLS // rows), prompts)
        _time(contexts[:answered], answer, _TOKENS, answers)
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
    contexts: list[Context], work: Callable[[Context, int], None], repeats: int, timings: list[RepeatedTiming]
) -> None:
    """Time the contexts in turns, so that disturbances affect all. The first call of a round only warms up."""
    index = 0
    while any(timing.wanted for timing in timings):
        for context, timing in zip(contexts, timings, strict=True):
            if index:
                timing.run(partial(work, context, index))
            else:
                context.clear()
                work(context, index)
        index = (index + 1) % repeats


@contextmanager
def _context_of_zeros(
    header: GGUFHeader, layers: int, layout: WeightLayout, rows: int, threads: int
) -> Iterator[Context]:
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as folder:
        path = Path(folder) / "zeros.gguf"
        _write(path, header, layers)
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


def _write(path: Path, header: GGUFHeader, layers: int) -> None:
    import numpy as np
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType

    arch = header.architecture
    writer = GGUFWriter(path, arch)
    for key, value in header.metadata.items():
        if key.startswith(("tokenizer.", "general.", "pocketvlm.", "split.")):
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
            per_layer = len(value) == header.metadata[f"{arch}.block_count"]
            writer.add_array(key, value[:layers] if per_layer else value)
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    if f"{arch}.vocab_size" not in header.metadata:
        writer.add_uint32(f"{arch}.vocab_size", embedding.shape[-1])
    writer.add_tokenizer_model("no_vocab")
    size = 0
    for tensor in header.tensors:
        match = _LAYER.match(tensor.name)
        if match and int(match[1]) >= layers:
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
