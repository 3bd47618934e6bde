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


class _Mend:
    """Looks at every node once before it is computed, and changes what is wrong."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._operation, self._name = functions.ggml_op_desc, functions.ggml_get_name
        self._operation.restype = ctypes.c_char_p
        self._name.restype = ctypes.c_void_p  # where it is: this tells whether a tensor still looks like ours

    def _is(self, node: int, operation: bytes) -> bool:
        address = ctypes.c_void_p(node)
        return bool(self._operation(address) == operation and self._name(address) == node + _Tensor.name.offset)


class ClassToken(_Mend):
    """Puts a class token before the patches, where its place in the table of positions is and where it is taken away.

    libmtmd's graph of encoders with a plain MLP puts it behind them: every patch then has its neighbour's position, the
    first one's embedding is lost, and the class token's stands in the picture.
    """

    _TOKEN = b"v.class_embd"

    def mend(self, node: int) -> None:
        """The node at an address, about to be computed; nothing happens where no token is behind patches."""
        if not self._is(node, b"CONCAT"):
            return
        sources = _Tensor.from_address(node).src
        if self._TOKEN in _Tensor.from_address(sources[1]).name:  # part of the name of a copy for another device
            sources[0], sources[1] = sources[1], sources[0]


class ClassPosition(_Mend):
    """Puts the class token's row of the table of positions, the first, behind the others, in the loaded weights.

    Where libmtmd's graph appends the class token to the patches and takes it away there again, the table alone is in
    another order: every patch has its neighbour's position, as where ClassToken mends.
    """

    _TABLE = b"v.position_embd.weight"

    def __init__(self, functions: ctypes.CDLL) -> None:
        super().__init__(functions)
        self._get, self._set = functions.ggml_backend_tensor_get, functions.ggml_backend_tensor_set
        for copy in (self._get, self._set):
            copy.argtypes, copy.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t), None
        self._done = False

    def mend(self, node: int) -> None:
        """The node at an address, about to be computed: the first that adds the table."""
        if self._done or not self._is(node, b"ADD"):
            return
        at = _Tensor.from_address(node).src[1]
        table = _Tensor.from_address(at)
        if table.name != self._TABLE:
            return
        row, size = table.nb[1], table.nb[1] * table.ne[1]
        rows = ctypes.create_string_buffer(size)
        self._get(at, rows, 0, size)
        self._set(at, rows.raw[row:] + rows.raw[:row], 0, size)
        self._done = True
