"""From checked files to what runs: a model, its vision and a context, on a GPU as far as that has room."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pocketvlm import devices
from pocketvlm.engine import placement
from pocketvlm.engine.engine import EngineOptions
from pocketvlm.engine.placement import Demand, Placement
from pocketvlm.engine.prefill import ROWS
from pocketvlm.engine.speculation import DRAFTED, Speculation, speculation_of
from pocketvlm.engine.step import Threads
from pocketvlm.errors import EngineError, ModelError, NativeLibraryError
from pocketvlm.files.footprint import encoder_bytes, encoder_scratch, weights_of
from pocketvlm.native import library
from pocketvlm.native.context import Context
from pocketvlm.native.heap import return_free_blocks
from pocketvlm.native.llama import Model
from pocketvlm.native.table import TokenTable, token_table
from pocketvlm.vision import onnx
from pocketvlm.vision.cache import default_size
from pocketvlm.vision.choose import open_vision, tile_patches
from pocketvlm.vision.encoder import Vision
from pocketvlm.vision.files import EmbeddingFiles
from pocketvlm.vision.pair import Checked, family_of
from pocketvlm.vision.providers import DEVICES, devices_for

_log = logging.getLogger(__name__)
CONTEXT_LIMIT = 8192  # default cap: the cache of a 2 B model then stays within a few hundred MB
BATCH = 512
_PHOTO = (4000, 3000)  # seen with detail auto: the encoder's share of a device is reckoned with it


@dataclass(frozen=True)
class Loaded:
    """`aside` makes the context for prompts beside answers, where there is to be one.

    `table` makes that of models to which tokens and their embeddings are the same.
    """

    model: Model
    vision: Vision | None
    context: Context
    aside: Callable[[], Context] | None
    placement: Placement
    table: Callable[[], TokenTable | None] | None
    speculation: Speculation | None


def load(
    checked: Checked, options: EngineOptions, *, threads: Threads, encoding: int | None, files: EmbeddingFiles | None
) -> Loaded:
    """`encoding` threads for the encoder. Where a device turns out to have less room than it says, less goes there."""
    where: Placement | None = _placement(checked, options)
    while where is not None:
        if where.short:
            _log.warning("%s", where.told)
        else:
            _log.info("%s", where.told)
        try:
            return _load(checked, options, where, threads, encoding, files)
        except (ModelError, EngineError) as error:
            where = where.less()
            if where is None:
                raise
            _log.warning("%s", error)
    raise AssertionError


def context_size(checked: Checked, asked: int | None) -> int:
    """In tokens, of a request."""
    trained = checked.model.metadata.get(f"{checked.model.architecture}.context_length")
    return asked or min(trained if isinstance(trained, int) and trained else CONTEXT_LIMIT, CONTEXT_LIMIT)


def _load(
    checked: Checked,
    options: EngineOptions,
    where: Placement,
    threads: Threads,
    encoding: int | None,
    files: EmbeddingFiles | None,
) -> Loaded:
    model = Model(checked.model.path, gpu_layers=where.layers, device=where.device)
    try:
        kept = options.picture_cache_size
        vision = open_vision(
            model,
            checked,
            threads=encoding,
            device=placement.onnx_device(options.device, _offered()) if checked.encoder else "auto",
            gpu=where.device if where.encoder else None,
            cache_size=default_size() if kept is None else kept,
            cache_files=files,
        )
        size, lanes = context_size(checked, options.context_size), options.parallel
        at_once = vision.at_once if vision else 0
        # On a GPU, a second context would take its memory and not spare its time.
        aside = threads.rest > 0 and not model.forgets and not where.layers
        make = partial(Context, model, exact=options.exact, sequences=lanes, moves=aside)
        speculation = speculation_of(options.speculate, exact=options.exact, forgets=model.forgets)
        drafted = DRAFTED if speculation else 0
        context = make(n_ctx=size, n_batch=max(BATCH, at_once), threads=threads.all, outputs=lanes + drafted)
    except BaseException:  # Ctrl-C too: nobody else can close it
        model.close()
        raise
    return_free_blocks()
    second = partial(make, n_ctx=-(-size // lanes), n_batch=max(ROWS, at_once), threads=threads.rest, outputs=lanes)
    # Small batches cost a GPU less; and ggml's Vulkan backend on Mesa's lavapipe did not survive the trial of a row.
    mixes = vision and not model.forgets and not where.layers
    table = partial(token_table, model, checked.model, context) if mixes else None
    return Loaded(model, vision, context, second if aside else None, where, table, speculation)


def _placement(checked: Checked, options: EngineOptions) -> Placement:
    placement.check_name(options.device, DEVICES)
    present = library.devices()
    host = devices.memory()
    demand = _demand(checked, options)
    try:
        found = placement.place(present, options.device, demand, host=host[1] if host else None)
    except NativeLibraryError:
        if checked.encoder is None or options.device not in _offered():  # then onnxruntime alone has it
            raise
        return Placement(None, 0, False, f"{options.device} for the ONNX vision encoder alone")
    if options.gpu_layers < 0 or found.device is None:
        return found
    return Placement(found.device, options.gpu_layers, found.encoder and options.gpu_layers > 0, "as asked")


def _demand(checked: Checked, options: EngineOptions) -> Demand:
    data, arch = checked.model.metadata, checked.model.architecture

    def of(key: str) -> int:
        value = data.get(f"{arch}.{key}")
        return value if isinstance(value, int) else max(value, default=0) if isinstance(value, list) else 0

    size, lanes = context_size(checked, options.context_size), options.parallel
    words = next((tensor.shape[-1] for tensor in checked.model.tensors if tensor.name == "token_embd.weight"), 0)
    inner = of("feed_forward_length") or 4 * of("embedding_length")
    scratch = placement.scratch_bytes(of("embedding_length"), inner, words, batch=BATCH, context=size, sequences=lanes)
    projector = checked.projector
    if projector is None:
        return Demand(weights_of(checked.model), size * lanes, scratch)
    family = family_of(projector.metadata, projector.path)
    patches = tile_patches(family, family.plan(_PHOTO, "auto", None) if family else None, projector.metadata)
    encoder = encoder_bytes(projector.metadata, projector.path.stat().st_size, onnx=False)
    encoder += encoder_scratch(projector.metadata, patches, onnx=False)
    return Demand(weights_of(checked.model), size * lanes, scratch, encoder, True)


def _offered() -> tuple[str, ...]:
    return devices_for("auto", onnx.runtime().get_available_providers())
