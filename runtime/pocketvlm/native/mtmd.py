"""Encode pictures with libmtmd and an mmproj file: single tiles, or with libmtmd's own preprocessing and layout."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import EngineError, ModelNotFoundError, PairingError
from pocketvlm.files.gguf_header import GGUFHeader, projector_type, read_header
from pocketvlm.native import library, log
from pocketvlm.native.context import Aborted
from pocketvlm.native.deferred_signals import signals_deferred
from pocketvlm.native.handle import Handle
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd_graph_patches import (
    CLASS_TOKEN,
    ClassPositionPatch,
    ClassTokenPatch,
    GraphPatch,
    PlainResamplingPatch,
)

_TEXT, _IMAGE = 0, 1  # mtmd_input_chunk_type
_CANCEL_INTERVAL = 24  # graph nodes between two checks of the cancel flag: about two checks a transformer layer
Projector = NewType("Projector", str)  # libmtmd's name of a projector type
_RESAMPLED = frozenset({Projector("paddleocr")})  # whose positions libmtmd resamples in another way
# Projectors with whose class token libmtmd builds a wrong graph.
_GRAPH_PATCHES: dict[str, type[GraphPatch]] = {
    Projector("mlp"): ClassTokenPatch,
    Projector("ldp"): ClassTokenPatch,
    Projector("ldpv2"): ClassTokenPatch,
    Projector("internvl"): ClassPositionPatch,
}


class ImageChunk(Handle):
    """One picture chunk of libmtmd, not yet encoded: `tokens` rows at `positions` int32 [1 or 4, tokens], from 0.

    `advance` is the number of positions from its start to the text after it.
    """

    def __init__(self, chunks: Handle, raw: Any, tokens: int, positions: npt.NDArray[np.int32], advance: int) -> None:
        super().__init__(raw, lambda _raw: None, parent=chunks)  # owned by `chunks`
        self.tokens = tokens
        self.positions = positions
        self.advance = advance


@dataclass(frozen=True)
class TextChunk:
    tokens: tuple[int, ...]


class Mtmd(Handle):
    """An mmproj file, loaded for `model`.

    With `tile_tokens`, libmtmd's own limits are set to one tile, so that it does not resize a tile. `device` is an
    index into `library.devices`, None the CPU.

    The caller must check first that the two files are a pair: libmtmd aborts the process on some wrong ones.
    """

    def __init__(
        self, path: str | Path, model: Model, *, threads: int, tile_tokens: int | None = None, device: int | None = None
    ) -> None:
        self._lib = lib = library.mtmd()
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelNotFoundError("no such file", self.path)
        self._cancelled = False
        params = lib.mtmd_context_params_default()
        params.n_threads = threads
        params.warmup = False
        params.use_gpu = device is not None
        if device is not None:
            params.device = library.device(device)
        params.print_timings = False
        if tile_tokens is not None:
            params.image_min_tokens, params.image_max_tokens = 1, tile_tokens
        self._patch = _graph_patch(read_header(self.path))
        self._on_node = type(params.cb_eval)(_node_callback(self, self._patch))
        params.cb_eval = self._on_node
        log.forget_errors()
        with signals_deferred(self.cancel):
            raw = lib.mtmd_init_from_file(str(self.path).encode(), model.raw, params)
            if not raw:
                raise PairingError(f"libmtmd cannot load it for {model.path.name}: {log.last_error()}", self.path)
            super().__init__(raw, lib.mtmd_free, parent=model)
        if not lib.mtmd_support_vision(raw):
            self.close()
            raise PairingError("this projector is not for pictures", self.path)
        self.width = model.n_embd_inp
        self._mrope = model.mrope

    @property
    def non_causal(self) -> bool:
        """Whether the decoder must attend both ways within a picture."""
        return bool(self._lib.mtmd_decode_use_non_causal(self.raw, None))

    def cancel(self) -> None:
        """Stop the running encode and all later ones until `allow`. May be called from any thread."""
        self._cancelled = True

    def allow(self) -> None:
        """Let encodes run again after `cancel`."""
        self._cancelled = False

    def encode_tile(self, tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode a tile, uint8 [height, width, 3] at the encoder's own size, to float32 [tokens, n_embd_inp]."""
        with self.chunks(tile) as chunks:
            # Tiled layouts put the overview last, and a picture of one tile is its own overview.
            overview = [chunk for chunk in chunks if isinstance(chunk, ImageChunk)][-1]
            return self.encode(overview)

    @contextmanager
    def chunks(self, image: npt.NDArray[np.uint8]) -> Iterator[list[TextChunk | ImageChunk]]:
        """Preprocess and lay out a picture, uint8 [height, width, 3], as libmtmd does; the chunks live in the block."""
        owner, chunks = self.open_chunks(image)
        try:
            yield chunks
        finally:
            owner.close()

    def open_chunks(self, image: npt.NDArray[np.uint8]) -> tuple[Handle, list[TextChunk | ImageChunk]]:
        """Do the same as `chunks`, but leave it to the caller to close the first value, which owns the chunks."""
        lib = self._lib
        pixels = np.ascontiguousarray(image)
        height, width = pixels.shape[:2]
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        chunks = lib.mtmd_input_chunks_init()
        bitmap = lib.mtmd_bitmap_init(width, height, data)
        try:
            part = lib.mtmd_input_part(None, bitmap)
            parts = (ctypes.POINTER(lib.mtmd_input_part) * 1)(ctypes.pointer(part))
            log.forget_errors()
            code = lib.mtmd_tokenize_from_parts(self.raw, chunks, parts, 1, False)
        finally:
            lib.mtmd_bitmap_free(bitmap)
        owner = Handle(chunks, lib.mtmd_input_chunks_free, parent=self)
        if code != 0:
            owner.close()
            raise EngineError(f"libmtmd cannot prepare a picture of {width}x{height}: {log.last_error()}")
        count = lib.mtmd_input_chunks_size(chunks)
        return owner, [self._chunk(owner, lib.mtmd_input_chunks_get(chunks, i)) for i in range(count)]

    def encode(self, chunk: ImageChunk) -> npt.NDArray[np.float32]:
        """Return the embeddings of a chunk, float32 [chunk.tokens, n_embd_inp].

        Raises Aborted if `cancel` was called meanwhile, and EngineError where libmtmd fails or builds a graph with a
        known fault in an unknown way.
        """
        lib = self._lib
        log.forget_errors()
        if self._patch is not None:
            self._patch.begin()
        # The thread ends with the call. GNU's OpenMP keeps a team of threads for each calling thread. Once all teams
        # together have more threads than there are cores, barriers sleep instead of spinning, and the decoder would
        # lose a third of its speed.
        with signals_deferred(self.cancel), ThreadPoolExecutor(1, "pocketvlm-encode") as executor:
            code = executor.submit(lib.mtmd_encode_chunk, self.raw, chunk.raw).result()
        # A cancelled encode returns 0 and finite, wrong embeddings, so our own flag must be checked.
        if self._cancelled:
            raise Aborted
        if code != 0:
            raise EngineError(f"libmtmd failed to encode a picture: {log.last_error()}")
        if self._patch is not None and not self._patch.done:
            raise EngineError(
                f"{self.path.name}: this build of libmtmd builds the graph in a way that pocketvlm does not know, and "
                "its embeddings may be wrong; use an ONNX vision encoder"
            )
        output = lib.mtmd_get_output_embd(self.raw)
        rows: npt.NDArray[np.float32] = np.ctypeslib.as_array(output, shape=(chunk.tokens, self.width)).copy()
        return rows

    def _chunk(self, owner: Handle, raw: Any) -> TextChunk | ImageChunk:
        lib = self._lib
        kind = lib.mtmd_input_chunk_get_type(raw)
        count = lib.mtmd_input_chunk_get_n_tokens(raw)
        if kind == _TEXT:
            size = ctypes.c_size_t()
            tokens = lib.mtmd_input_chunk_get_tokens_text(raw, ctypes.byref(size))
            return TextChunk(tuple(tokens[: size.value]))
        if kind != _IMAGE:
            raise EngineError("libmtmd returned a chunk that is neither text nor picture")
        if self._mrope:
            image = lib.mtmd_input_chunk_get_tokens_image(raw)
            places = [lib.mtmd_image_tokens_get_decoder_pos(image, 0, i) for i in range(count)]
            positions = np.array([[place.t, place.y, place.x, place.z] for place in places], dtype=np.int32).T
        else:
            positions = np.arange(count, dtype=np.int32)[None]
        return ImageChunk(owner, raw, count, positions, lib.mtmd_input_chunk_get_n_pos(raw))


def _graph_patch(header: GGUFHeader) -> GraphPatch | None:
    """Return the patch for the graph of a file, None where libmtmd builds it right."""
    projector = projector_type(header.metadata) or ""
    if projector in _RESAMPLED:
        return PlainResamplingPatch()
    patch = _GRAPH_PATCHES.get(projector)
    return patch() if patch and any(tensor.name == CLASS_TOKEN for tensor in header.tensors) else None


def _node_callback(owner: Mtmd, patch: GraphPatch | None) -> Any:
    """Return the ggml_backend_sched_eval_callback: patch the graph, and stop it where `owner` was cancelled.

    It must not keep `owner` alive, or the context would never be freed.
    """
    reference = weakref.ref(owner)
    nodes = 0

    def on_node(node: int, ask: bool, _data: object) -> bool:
        nonlocal nodes
        if ask:
            if patch is not None:
                patch.apply(node)
            nodes += 1
            return nodes % _CANCEL_INTERVAL == 0
        mtmd = reference()
        return mtmd is not None and not mtmd._cancelled

    return on_node
