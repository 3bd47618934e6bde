"""Read token embeddings from a model's file, so that tokens can be evaluated in a batch of embeddings.

A batch of libllama has either tokens or embeddings. A picture of many tiles with a few tokens between them would need
many small batches, which take 1.5 times as long as large ones.
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
    """struct ggml_type_traits of ggml.h, with its strings and functions as addresses."""

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
    """`token_embd.weight`, mapped from the file and dequantized by libggml. Raises ValueError where it cannot."""

    def __init__(self, model: Model, header: GGUFHeader) -> None:
        table = next((tensor for tensor in header.tensors if tensor.name == _NAME), None)
        if table is None or len(table.shape) != 2 or table.shape[0] > model.n_embd_inp:
            raise ValueError(f"no {_NAME} of the model's width")
        self._width, self._input_width = table.shape[0], model.n_embd_inp
        self._to_float = _to_float(table.type)
        row_size = function("ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)(table.type, self._width)
        path, offset = header.place(table)
        self._stored = np.memmap(path, np.uint8, "r", offset, (table.shape[1], row_size))

    def row(self, token: int) -> npt.NDArray[np.float32]:
        """Return the embedding of a token, float32 [1, n_embd_inp], zero beyond the hidden size in deepstack models."""
        row = np.zeros((1, self._input_width), np.float32)
        stored = self._stored[token]
        if self._to_float is None:
            row[0, : self._width] = stored.view(np.float32)
        else:
            self._to_float(stored.ctypes.data, row.ctypes.data, self._width)
        return row


def token_embeddings(model: Model, header: GGUFHeader, context: Context) -> TokenEmbeddings | None:
    """Return the table, or None unless feeding a row gives exactly the logits of feeding its token.

    This is checked in `context`, which must be empty. Some models scale embeddings, or need the token in other layers,
    too. Call it on the thread that evaluates: with GNU's OpenMP, a second thread that has ever evaluated makes all
    barriers of the process sleep instead of spinning, which costs a third of the speed where all cores are used.
    """
    token = model.n_vocab // 2
    try:
        table = TokenEmbeddings(model, header)
        context.decode_token(token, 0)
        context.decode_token(token, 1)
        expected = context.logits()
        if not context.truncate(1):  # a state cannot be cut back
            context.clear()
            context.decode_token(token, 0)
        context.decode_embeddings(table.row(token), context.positions(1, 1))
        return table if np.array_equal(context.logits(), expected) else None
    except (ValueError, AttributeError, EngineError, Aborted):  # AttributeError: libggml does not export a function
        return None
    finally:
        context.clear()


def _to_float(kind: int) -> Callable[[int, int, int], None] | None:
    """Return a function (source, target, width) that dequantizes a row of a ggml type.

    None for float32 rows. Raises ValueError where libggml cannot dequantize the type.
    """
    if kind == _FLOAT32:
        return None
    address: int = function("ggml_get_type_traits", ctypes.c_void_p, ctypes.c_int)(kind)
    traits = _Traits.from_address(address)
    name = function("ggml_type_name", ctypes.c_void_p, ctypes.c_int)(kind)
    size = function("ggml_type_size", ctypes.c_size_t, ctypes.c_int)(kind)
    quantized = function("ggml_is_quantized", ctypes.c_bool, ctypes.c_int)(kind)
    if (traits.type_name, traits.type_size, traits.is_quantized) != (name, size, quantized) or not traits.to_float:
        raise ValueError(f"libggml cannot dequantize type {kind}, or has another structure for its traits")
    return _TO_FLOAT(traits.to_float)
