"""libmtmd: an mmproj file as an encoder of single tiles, or with its own preprocessing and layout."""

from __future__ import annotations

import ctypes
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
from pocketvlm.native.mtmd_graph_patches import CLASS_TOKEN, ClassPositionPatch, ClassTokenPatch

_TEXT, _IMAGE = 0, 1  # mtmd_input_chunk_type
_ASK_EVERY = 24  # graph nodes between two looks at the cancel flag: about two a transformer layer
Projector = NewType("Projector", str)  # libmtmd's name of one
# Those whose graphs have a fault, and what mends it.
_MENDS: dict[str, type[ClassTokenPatch | ClassPositionPatch]] = {
    Projector("mlp"): ClassTokenPatch,
    Projector("ldp"): ClassTokenPatch,
    Projector("ldpv2"): ClassTokenPatch,
    Projector("internvl"): ClassPositionPatch,
}


class ImageChunk(Handle):
    """One picture chunk of libmtmd, not yet encoded: `tokens` rows at `positions` int32 [1 or 4, tokens], from 0.

    `advance` is how far the next text position moves on.
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

    With `tile_tokens`, libmtmd's own limits are set to one tile, so that a tile given at its size passes unchanged.
    `device` is the number of one of ggml's, None the CPU.
    The caller checks the pair first: libmtmd aborts the process on some wrong ones.
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
        self._mend = _mend_for(read_header(self.path))
        self._eval = type(params.cb_eval)(_make_eval(self, self._mend))
        params.cb_eval = self._eval
        log.forget_errors()
        with signals_deferred(self.cancel):
            raw = lib.mtmd_init_from_file(str(self.path).encode(), model.raw, params)
            if not raw:
                raise PairingError(f"libmtmd cannot load it for {model.path.name}: {log.last_error()}", self.path)
            super().__init__(raw, lib.mtmd_free, parent=model)
        if not lib.mtmd_support_vision(raw):
            self.close()
            raise PairingError("this projector does not take pictures", self.path)
        self.width = model.n_embd_inp
        self._mrope = model.mrope

    @property
    def non_causal(self) -> bool:
        return bool(self._lib.mtmd_decode_use_non_causal(self.raw, None))

    def cancel(self) -> None:
        """Stop the running encode, from any thread. Holds until `allow`."""
        self._cancelled = True

    def allow(self) -> None:
        self._cancelled = False

    def encode_tile(self, tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [height, width, 3] at the encoder's own size -> float32 [tokens, n_embd_inp]."""
        with self.chunks(tile) as parts:
            # Tiled layouts put the overview last, and a picture of one tile is its own overview.
            last = [part for part in parts if isinstance(part, ImageChunk)][-1]
            return self.encode(last)

    @contextmanager
    def chunks(self, image: npt.NDArray[np.uint8]) -> Iterator[list[TextChunk | ImageChunk]]:
        """libmtmd's own preprocessing and layout of a picture: uint8 [height, width, 3]."""
        owner, parts = self.open_chunks(image)
        try:
            yield parts
        finally:
            owner.close()

    def open_chunks(self, image: npt.NDArray[np.uint8]) -> tuple[Handle, list[TextChunk | ImageChunk]]:
        """Like `chunks`, but the caller closes the first value, which owns the parts."""
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
        """float32 [chunk.tokens, n_embd_inp]; Aborted where `cancel` was called meanwhile.

        EngineError where libmtmd fails, or computes an encoder that it has a fault in otherwise than expected.
        """
        lib = self._lib
        log.forget_errors()
        # On a thread that ends with it. GNU's OpenMP keeps a team for each that called, and once all teams have more
        # threads than there are cores, barriers sleep instead of spin: the decoder would lose a third of its speed.
        with signals_deferred(self.cancel), ThreadPoolExecutor(1, "pocketvlm-encode") as alone:
            code = alone.submit(lib.mtmd_encode_chunk, self.raw, chunk.raw).result()
        # A cancelled encode returns 0 and a finite, wrong embedding: only our own flag tells.
        if self._cancelled:
            raise Aborted
        if code != 0:
            raise EngineError(f"libmtmd failed to encode a picture: {log.last_error()}")
        if self._mend is not None and not self._mend.done:
            raise EngineError(
                f"{self.path.name}: this build of libmtmd places the class token otherwise than pocketvlm knows, and "
                "may see pictures wrong; an ONNX vision encoder does without it"
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
            placed = [lib.mtmd_image_tokens_get_decoder_pos(image, 0, i) for i in range(count)]
            positions = np.array([[p.t, p.y, p.x, p.z] for p in placed], dtype=np.int32).T
        else:
            positions = np.arange(count, dtype=np.int32)[None]
        return ImageChunk(owner, raw, count, positions, lib.mtmd_input_chunk_get_n_pos(raw))


def _mend_for(header: GGUFHeader) -> ClassTokenPatch | ClassPositionPatch | None:
    """None where the graph of a file has no fault, or no class token."""
    mend = _MENDS.get(projector_type(header.metadata) or "")
    return mend() if mend and any(tensor.name == CLASS_TOKEN for tensor in header.tensors) else None


def _make_eval(owner: Mtmd, fault: ClassTokenPatch | ClassPositionPatch | None) -> Any:
    """The scheduler's callback. It must not keep `owner` alive, or the context would never be freed."""
    import weakref

    reference = weakref.ref(owner)
    seen = 0

    def look(node: int, ask: bool, _data: object) -> bool:
        nonlocal seen
        if ask:
            if fault is not None:
                fault.mend(node)
            seen += 1
            return seen % _ASK_EVERY == 0
        mtmd = reference()
        return mtmd is not None and not mtmd._cancelled

    return look
