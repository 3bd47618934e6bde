"""Nodes of a graph before they are computed: what they take, changed where libmtmd builds one wrong."""

from __future__ import annotations

import ctypes

_SOURCES, _DIMENSIONS, _PARAMETERS, _NAME = 10, 4, 16, 64  # GGML_MAX_SRC and its like, ggml.h


class _Tensor(ctypes.Structure):
    """struct ggml_tensor, down to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _DIMENSIONS),
        ("nb", ctypes.c_size_t * _DIMENSIONS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * _PARAMETERS),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _NAME),
    )


class ClassToken:
    """Puts a class token before the patches, where its place in the table of positions is and where it is taken away.

    libmtmd's graph of encoders with a plain MLP puts it behind them: every patch then has its neighbour's position, the
    first one's embedding is lost, and the class token's stands in the picture.
    """

    _TOKEN = b"v.class_embd"

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._operation, self._name = functions.ggml_op_desc, functions.ggml_get_name
        self._operation.restype = ctypes.c_char_p
        self._name.restype = ctypes.c_void_p  # where it is: this tells whether a tensor still looks like ours

    def put_first(self, node: int) -> None:
        """Of the node at an address, about to be computed; nothing happens where no token is behind patches."""
        address = ctypes.c_void_p(node)
        if self._operation(address) != b"CONCAT" or self._name(address) != node + _Tensor.name.offset:
            return
        sources = _Tensor.from_address(node).src
        if self._TOKEN in _Tensor.from_address(sources[1]).name:  # part of the name of a copy for another device
            sources[0], sources[1] = sources[1], sources[0]
