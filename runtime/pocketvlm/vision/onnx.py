"""Encode with onnxruntime, from pixels to embeddings, with a vision encoder that `pocketvlm convert` exported."""

from __future__ import annotations

import importlib.metadata
import os
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from pocketvlm.errors import EngineClosedError, EngineError, ModelFormatError, NativeLibraryError, shortened
from pocketvlm.files.onnx_header import OnnxHeader
from pocketvlm.native.context import Aborted
from pocketvlm.system.machine import other_libc
from pocketvlm.vision.encoder import Embeddings
from pocketvlm.vision.family import RGB
from pocketvlm.vision.providers import CPU, providers_of

INPUT, OUTPUT = "pixels", "embeddings"
CONCURRENT_TILES = 2  # tiles that may be encoded at the same time on a CPU, each on a thread of the caller's
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
# An ONNX model: MatMulInteger of uint8 [1, 4] and a constant int8 [4, 16] of 127.
_INT8_PROBE = bytes.fromhex(
    "08083a94010a180a01410a0142120159220d4d61744d756c496e74656765721201672a4b0804081010034201424a40"
    + 64 * "7f"
    + "5a130a0141120e0a0c080212080a0208010a02080462130a0159120e0a0c080612080a0208010a02081042040a00100d"
)
_FATAL = 4  # log level. Errors are raised as exceptions; lower levels would only write to the terminal.


@cache
def runtime() -> ModuleType:
    """Return the onnxruntime package, imported at the first call. Raises NativeLibraryError where that fails."""
    # onnxruntime reads this while it is loaded. Without it, it writes an id of this machine to the cache folder and
    # may send events.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # pybind11 turns one during the import into ImportError
            raise KeyboardInterrupt from None
        raise NativeLibraryError(f"cannot load onnxruntime: {error}{other_libc()}") from error
    onnxruntime.disable_telemetry_events()
    module: ModuleType = onnxruntime
    return module


@cache
def int8_is_exact() -> bool:
    """Whether onnxruntime's products of uint8 and int8 are exact on this CPU.

    On x86 without VNNI they are added in 16 bits, where they saturate: cosines of embeddings fell from 0.999 to 0.93.
    """
    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(_INT8_PROBE, options, providers=providers_of(CPU))
    (products,) = session.run(None, {"A": np.full((1, 4), 255, np.uint8)})
    return bool((products == 4 * 255 * 127).all())


def version() -> str:
    """Return the version of the installed onnxruntime, whichever package it is from, or "not installed"."""
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return "not installed"


class OnnxEncoder:
    """A `VisionEncoder` over a file whose header was checked. Raises ModelFormatError where onnxruntime refuses it.

    Each tile is encoded in a run of its own. In a batch, int8 activations would share one scale, so that embeddings
    would depend on the other tiles.
    """

    def __init__(self, header: OnnxHeader, *, threads: int, device: str = CPU) -> None:
        ort = runtime()
        kind = str(header.metadata.get("pocketvlm.type", ""))
        self.name = " ".join(filter(None, ("onnxruntime", kind, "" if device == CPU else device)))
        self.path = header.path
        self.concurrent_tiles = CONCURRENT_TILES if device == CPU else 1
        self._cancelled = False
        self._run = ort.RunOptions()
        self._run.log_severity_level = _FATAL
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # a single block for all tensors takes 20 % more memory and is not faster
        # Threads that spin after a run would compete with the decoder for the cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not int8_is_exact():
            # onnxruntime then takes the weights as uint8, which is exact everywhere and slower.
            options.add_session_config_entry("session.x64quantprecision", "1")
        self._session: Any = None
        try:
            self._session = ort.InferenceSession(str(header.path), options, providers=providers_of(device))
        except Exception as error:  # onnxruntime's own classes derive from Exception
            raise ModelFormatError(f"onnxruntime cannot load it: {_first_line(error)}", header.path) from error
        # From the checked header: onnxruntime reads the names of dimensions as UTF-8, whatever they are.
        self._frames = (header.inputs[0].shape[-1] or 3) // 3
        self._width = header.outputs[0].shape[-1] or 0

    @property
    def frames(self) -> int:
        """The number of frames of a video in a tile. Encoders of earlier versions take one, and double it."""
        return self._frames

    @property
    def width(self) -> int:
        """The width of an embedding."""
        return self._width

    def encode_tile(self, tile: RGB) -> Embeddings:
        """Return the embeddings of a tile. Raises Aborted, EngineClosedError and EngineError."""
        if self._session is None:
            raise EngineClosedError("the vision encoder is closed")
        try:
            (rows,) = self._session.run([OUTPUT], {INPUT: input_of(tile, self._frames)}, self._run)
        except Exception as error:  # onnxruntime's own classes derive from Exception
            if self._cancelled:
                raise Aborted from None
            raise EngineError(f"onnxruntime failed to encode a picture: {_first_line(error)}") from error
        if self._cancelled:
            raise Aborted
        embeddings: Embeddings = rows[0].copy()  # a cached view would keep onnxruntime's scratch memory fragmented
        return embeddings

    def cancel(self) -> None:
        self._cancelled = True
        self._run.terminate = True  # onnxruntime reads it between two operators

    def allow(self) -> None:
        self._cancelled = False
        self._run.terminate = False

    def close(self) -> None:
        self._session = None


def input_of(tile: RGB, frames: int) -> RGB:
    """Return what a session gets for a tile: uint8 [1, height, width, 3 * frames]. A picture is repeated."""
    return np.tile(tile, frames)[None] if tile.shape[-1] == 3 and frames > 1 else tile[None]


def _first_line(error: Exception) -> str:
    return shortened(str(error).strip().split("\n", 1)[0])
