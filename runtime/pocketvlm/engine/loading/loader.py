"""Load checked files: a model, its vision and a context, on a GPU as far as its memory allows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pocketvlm.engine.interface import EngineOptions
from pocketvlm.engine.kv_cache.sequence_pool import MAX_BRANCHES
from pocketvlm.engine.loading.choose_layout import choose_layout
from pocketvlm.engine.loading.closing_token import closing_token
from pocketvlm.engine.loading.device_placement import (
    DevicePlacement,
    MemoryDemand,
    check_name,
    device_bytes,
    onnx_device,
    place_on_devices,
    scratch_bytes,
)
from pocketvlm.engine.scheduling.background_prefill import CHUNK_ROWS
from pocketvlm.engine.scheduling.token_tree import MAX_BRANCH_ROWS
from pocketvlm.engine.speculative.draft_length import MAX_DRAFT_TOKENS, DraftLengthPolicy, draft_length_policy
from pocketvlm.engine.threads import ThreadBudget
from pocketvlm.errors import EngineError, ModelError, NativeLibraryError, RequestError
from pocketvlm.files.cache_type import CacheType, cache_bytes, require_cache_type
from pocketvlm.files.footprint import encoder_bytes, encoder_scratch, heads_of, weights_of
from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.files.gguf_vocabulary import require_vocabulary
from pocketvlm.files.onnx_header import OnnxHeader
from pocketvlm.native import flash_attention, library, memory_estimate
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.token_embeddings import TokenEmbeddings, token_embeddings
from pocketvlm.native.weight_layout import WeightLayout
from pocketvlm.system import limits
from pocketvlm.system.allocator import return_free_blocks
from pocketvlm.system.machine import memory
from pocketvlm.vision import onnx
from pocketvlm.vision.compatibility import CheckedFiles, family_of
from pocketvlm.vision.embedding_cache import default_size
from pocketvlm.vision.embedding_disk_cache import DiskCache
from pocketvlm.vision.encoder import Vision
from pocketvlm.vision.providers import DEVICES, devices_for
from pocketvlm.vision.select_encoder import open_vision, tile_patches

_log = logging.getLogger(__name__)
CONTEXT_LIMIT = 8192  # default cap: the cache of a 2 B model then stays within a few hundred MB
BATCH_ROWS = 512  # tokens and embeddings in one evaluation
# Memory of the native libraries, half of it code that is in use all the time, measured on x86-64 with llama-cpp-python
# 0.3.36 and onnxruntime 1.32.
_LIBRARY_MEMORY = 24 << 20
_ON_CPU = DevicePlacement(None, 0, False, "all on the CPU")
_PHOTO = (4000, 3000)  # pixels: the encoder's memory on a device is that of such a picture with detail auto


@dataclass(frozen=True)
class LoadedModel:
    """What an engine runs.

    `prefill_context` makes the context of background prompts, where there is to be one. `load_token_embeddings` returns
    the embeddings of tokens, for models where an embedding gives the same logits as its token.
    """

    model: Model
    vision: Vision | None
    context: Context
    prefill_context: Callable[[], Context] | None
    placement: DevicePlacement
    layout: WeightLayout
    load_token_embeddings: Callable[[], TokenEmbeddings | None] | None
    draft_policy: DraftLengthPolicy | None


def load(
    checked: CheckedFiles,
    options: EngineOptions,
    *,
    threads: ThreadBudget,
    encoder_threads: int | None,
    disk_cache: DiskCache | None,
) -> LoadedModel:
    """Load the files. Where a device has less memory than it reports, try again with less on it.

    Raises ModelError or EngineError where the files cannot be loaded on the CPU either, and where there is no
    vocabulary; RequestError where model or device do not allow the type of the cache; SystemLimitError where they do
    not fit the memory of this process's control groups.
    """
    require_vocabulary(checked.model)
    require_cache_type(checked.model, options.kv_type)
    placement: DevicePlacement | None = _placement(checked, options)
    while placement is not None:
        if placement.short:
            _log.warning("%s", placement.summary)
        else:
            _log.info("%s", placement.summary)
        if placement.layers and placement.device is not None:
            _require_attention(checked.model, options.kv_type, placement.device)
        layout = WeightLayout.REORDERED
        if not placement.layers:
            layout = choose_layout(checked.model, threads=threads.all, exact=options.exact)
        if limits.is_group_limited():
            size = host_memory(checked, options, placement) + _LIBRARY_MEMORY
            size += 0 if layout.mapped else _reordered_bytes(checked.model, placement)
            limits.require_group_memory(size, checked.model.path.name)
        try:
            return _load(checked, options, placement, layout, threads, encoder_threads, disk_cache)
        except (ModelError, EngineError) as error:
            placement = placement.smaller()
            if placement is None:
                raise
            _log.warning("%s", error)
    raise AssertionError("the CPU is the last placement")


def context_size(model: GGUFHeader, requested: int | None) -> int:
    """Return the context size of a request, in tokens: as `requested`, or what the model was trained for, capped."""
    trained = model.metadata.get(f"{model.architecture}.context_length")
    return requested or min(trained if isinstance(trained, int) and trained else CONTEXT_LIMIT, CONTEXT_LIMIT)


def output_rows(sequences: int) -> int:
    """Return how many rows of logits a context keeps: one for each sequence, and drafts or choices."""
    return sequences + max(MAX_DRAFT_TOKENS, MAX_BRANCH_ROWS - 1)


def _load(
    checked: CheckedFiles,
    options: EngineOptions,
    placement: DevicePlacement,
    layout: WeightLayout,
    threads: ThreadBudget,
    encoder_threads: int | None,
    disk_cache: DiskCache | None,
) -> LoadedModel:
    _log.info("weights: %s", layout.value)
    model = Model(checked.model.path, gpu_layers=placement.layers, device=placement.device, mapped=layout.mapped)
    try:
        if (closing := closing_token(model)) is not None:
            model.end_at(closing)
        vision = open_vision(
            model,
            checked,
            threads=encoder_threads,
            device=onnx_device(options.device, _onnx_devices()) if checked.encoder else "auto",
            gpu=placement.device if placement.encoder else None,
            cache_size=default_size() if options.picture_cache_size is None else options.picture_cache_size,
            cache_files=disk_cache,
        )
        size, sequences = context_size(checked.model, options.context_size), options.parallel
        min_batch = vision.min_batch if vision else 0
        # On a GPU a second context would take its memory and not save its time.
        background = threads.background > 0 and not model.needs_checkpoints and not placement.layers
        make = partial(
            Context,
            model,
            cache_type=options.kv_type,
            sequences=sequences,
            moves=background,
            accelerated=layout.accelerated,
        )
        draft_policy = draft_length_policy(
            options.speculate, exact=options.exact, needs_checkpoints=model.needs_checkpoints
        )
        context = make(
            n_ctx=size,
            n_batch=max(BATCH_ROWS, min_batch),
            threads=threads.all,
            branches=MAX_BRANCHES,
            outputs=output_rows(sequences),
        )
    except BaseException:  # Ctrl-C too: no caller has the model yet
        model.close()
        raise
    return_free_blocks()
    prefill_context = partial(
        make,
        n_ctx=-(-size // sequences),
        n_batch=max(CHUNK_ROWS, min_batch),
        threads=threads.background,
        outputs=sequences,
    )
    # Not on a GPU: small batches cost it less, and ggml's Vulkan backend crashed in the trial of a row (on lavapipe).
    mixed = vision and not placement.layers
    return LoadedModel(
        model,
        vision,
        context,
        prefill_context if background else None,
        placement,
        layout,
        partial(token_embeddings, model, checked.model, context) if mixed else None,
        draft_policy,
    )


def _placement(checked: CheckedFiles, options: EngineOptions) -> DevicePlacement:
    check_name(options.device, DEVICES)
    devices, demand, host = library.devices(), memory_demand(checked, options), memory()
    try:
        placement = place_on_devices(devices, options.device, demand, host=host[1] if host else None)
    except NativeLibraryError:
        if checked.encoder is None or options.device not in _onnx_devices():  # then onnxruntime alone has it
            raise
        return DevicePlacement(None, 0, False, f"{options.device} for the ONNX vision encoder alone")
    if options.gpu_layers < 0 or placement.device is None:
        return placement
    encoder = placement.encoder and options.gpu_layers > 0
    return DevicePlacement(placement.device, options.gpu_layers, encoder, "as asked")


def _require_attention(header: GGUFHeader, cache_type: CacheType, device: int) -> None:
    """Raise RequestError where a GPU does not compute attention over a quantized cache."""
    if cache_type != "q8_0":
        return
    for heads in heads_of(header):
        if not flash_attention.is_supported(device, cache_type, heads):
            raise RequestError(
                f"{library.devices()[device].name} does not compute attention over a {cache_type} cache with heads of "
                f"{heads.key_width} values; use f16, or device cpu",
                "cache_type",
            )


def memory_demand(checked: CheckedFiles, options: EngineOptions) -> MemoryDemand:
    """Return what a model takes on a device; its encoder is the projector, because only that can be moved."""
    metadata, architecture = checked.model.metadata, checked.model.architecture

    def number(key: str) -> int:
        value = metadata.get(f"{architecture}.{key}")
        return value if isinstance(value, int) else max(value, default=0) if isinstance(value, list) else 0

    size, sequences = context_size(checked.model, options.context_size), options.parallel
    vocabulary = next((t.shape[-1] for t in checked.model.tensors if t.name == "token_embd.weight"), 0)
    width = number("embedding_length")
    inner = number("feed_forward_length") or 4 * width
    rows = {"batch": BATCH_ROWS, "outputs": output_rows(sequences)}
    scratch = scratch_bytes(width, inner, vocabulary, context=size, sequences=sequences, **rows)
    weights = weights_of(checked.model)
    weights = replace(weights, cell=tuple(cache_bytes(cell, options.kv_type) for cell in weights.cell))
    projector = checked.projector
    if projector is None:
        return MemoryDemand(weights, size * sequences, scratch)
    encoder = encoder_demand(projector.metadata, projector.path, projector.path.stat().st_size, onnx=False)
    return MemoryDemand(weights, size * sequences, scratch, encoder, True)


def host_memory(checked: CheckedFiles, options: EngineOptions, placement: DevicePlacement = _ON_CPU) -> int:
    """Return the bytes of this machine's memory that a model takes beside its weights, where `placement` leaves it."""
    demand = memory_demand(checked, options)
    encoders = [0 if placement.encoder else demand.encoder]
    if (encoder := checked.encoder) is not None:
        encoders.append(encoder_demand(encoder.metadata, encoder.path, onnx_bytes(encoder), onnx=True))
    cell = sum(demand.weights.cell[: _layers_on_cpu(len(demand.weights.cell), placement)])
    # On a device, too, an evaluation's inputs and results are in this memory.
    return demand.cells * cell + demand.scratch + max(encoders)


def device_memory(checked: CheckedFiles, options: EngineOptions, placement: DevicePlacement) -> int:
    """Return the bytes of a GPU's memory that a placement takes, as predicted."""
    return 0 if placement.device is None else device_bytes(memory_demand(checked, options), placement)


def onnx_bytes(encoder: OnnxHeader) -> int:
    """Return the size of an ONNX encoder's files."""
    return sum(path.stat().st_size for path in {encoder.path, *encoder.data_files})


def encoder_demand(metadata: dict[str, Any], path: Path, size: int, *, onnx: bool) -> int:
    """Return the bytes of an opened vision encoder and of its largest tile. `size` is that of its files."""
    family = family_of(metadata, path)
    patches = tile_patches(family, family.plan(_PHOTO, "auto", None) if family else None, metadata)
    return encoder_bytes(metadata, size, onnx=onnx) + encoder_scratch(metadata, patches, onnx=onnx)


def _reordered_bytes(header: GGUFHeader, placement: DevicePlacement) -> int:
    """Return the bytes of the weights on the CPU that libllama copies from the file, to reorder them."""
    copied = (
        tensor
        for tensor in header.tensors
        if len(tensor.shape) > 1 and not tensor.name.startswith("token_embd") and memory_estimate.reordered(tensor.type)
    )
    weights = weights_of(replace(header, tensors=tuple(copied)))
    return sum(weights.layers[: _layers_on_cpu(len(weights.layers), placement)]) + (
        0 if placement.layers else weights.output
    )


def _layers_on_cpu(count: int, placement: DevicePlacement) -> int:
    """Return how many of `count` layers stay; the output goes to a device first, then layers from the last one on."""
    return max(0, count - max(0, placement.layers - 1))


def _onnx_devices() -> tuple[str, ...]:
    return devices_for("auto", onnx.runtime().get_available_providers())
