"""A model's table of token embeddings: tokens as embeddings.

libllama takes a batch of tokens or one of embeddings. A picture of many tiles with a few tokens between them would go
in as many small batches, which take half as long again as large ones.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import EngineError
from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.native.context import Aborted, Context
from pocketvlm.native.llama import Model
from pocketvlm.native.tensor import function

_NAME = "token_embd.weight"
_FLOAT32 = 0  # GGML_TYPE_F32
_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h; addresses of its name and functions."""

    _fields_ = (
        ("type_name", ctypes.c_void_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


class TokenEmbeddings:
    """`token_embd.weight`, as libggml reads it from the mapped file. ValueError where it cannot."""

    def __init__(self, model: Model, header: GGUFHeader) -> None:
        found = next((tensor for tensor in header.tensors if tensor.name == _NAME), None)
        if found is None or len(found.shape) != 2 or found.shape[0] > model.n_embd_inp:
            raise ValueError(f"no {_NAME} of the model's width")
        self._width, self._inputs = found.shape[0], model.n_embd_inp
        self._to_float = _to_float(found.type)
        row = function("ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)(found.type, self._width)
        self._stored = np.memmap(header.path, np.uint8, "r", header.start + found.offset, (found.shape[1], row))

    def row(self, token: int) -> npt.NDArray[np.float32]:
        """float32 [1, n_embd_inp]; zeros behind the hidden size, where deepstack models take more."""
        found = np.zeros((1, self._inputs), np.float32)
        stored = self._stored[token]
        if self._to_float is None:
            found[0, : self._width] = stored.view(np.float32)
        else:
            self._to_float(stored.ctypes.data, found.ctypes.data, self._width)
        return found


def token_embeddings(model: Model, header: GGUFHeader, context: Context) -> TokenEmbeddings | None:
    """None where a row is not to the model what its token is, bit for bit: tried in the empty `context`.

    Some models scale it, or ask for the token in other layers as well. To be called on the thread that evaluates: with
    GNU's OpenMP, a second one that ever did makes all barriers of the process sleep instead of spin, and a third of the
    speed is gone where all cores are used.
    """
    token = model.n_vocab // 2
    try:
        table = TokenEmbeddings(model, header)
        context.decode_token(token, 0)
        context.decode_token(token, 1)
        expected = context.logits()
        context.truncate(1)
        context.decode_embeddings(table.row(token), context.positions(1, 1))
        return table if np.array_equal(context.logits(), expected) else None
    except (ValueError, AttributeError, EngineError, Aborted):  # a function that libggml has not, or hides
        return None
    finally:
        context.clear()


def _to_float(kind: int) -> Callable[[int, int, int], None] | None:
    """Turns a row of a type into floats: from, to, width. None where it is floats; ValueError where libggml cannot."""
    if kind == _FLOAT32:
        return None
    found: int = function("ggml_get_type_traits", ctypes.c_void_p, ctypes.c_int)(kind)
    traits = _Traits.from_address(found)
    name = function("ggml_type_name", ctypes.c_void_p, ctypes.c_int)(kind)
    size = function("ggml_type_size", ctypes.c_size_t, ctypes.c_int)(kind)
    quantized = function("ggml_is_quantized", ctypes.c_bool, ctypes.c_int)(kind)
    if (traits.type_name, traits.type_size, traits.is_quantized) != (name, size, quantized) or not traits.to_float:
        raise ValueError(f"libggml has no way to read type {kind}, or another structure for it")
    return _TO_FLOAT(traits.to_float)
