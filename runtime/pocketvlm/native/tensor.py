"""Access a tensor of ggml by its address: its fields, its values and libggml's functions for it."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from pocketvlm.native import library


class GGMLTensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, up to its name.

    `ne` has the number of elements and `nb` the stride in bytes of each axis, innermost first. `src` holds addresses.
    """

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )

    def source(self, number: int) -> GGMLTensor:
        return GGMLTensor.from_address(self.src[number])


def op_desc(address: int) -> bytes:
    """Return the name of a node's operation, such as MUL_MAT or CONCAT."""
    name: bytes = function("ggml_op_desc", ctypes.c_char_p, ctypes.c_void_p)(address)
    return name


def name_address(address: int) -> int:
    """Return the address at which libggml keeps the name of a tensor."""
    return int(function("ggml_get_name", ctypes.c_void_p, ctypes.c_void_p)(address))


def is_known(address: int) -> bool:
    """Return whether libggml's structure still is `GGMLTensor`, so that the fields read by it are right."""
    return name_address(address) == address + GGMLTensor.name.offset


def read(address: int, size: int) -> bytes:
    """Return the first `size` bytes of a tensor's values, from whichever device they are on."""
    values = ctypes.create_string_buffer(size)
    _copy_function("ggml_backend_tensor_get")(address, values, 0, size)
    return values.raw


def write(address: int, values: bytes) -> None:
    """Overwrite the beginning of a tensor's values."""
    _copy_function("ggml_backend_tensor_set")(address, values, 0, len(values))


def _copy_function(name: str) -> Any:
    return function(name, None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


@cache
def function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of libggml with these types. Types set on the library's attribute would change it for all."""
    return ctypes.CFUNCTYPE(result, *arguments)((name, library.ggml().library(name)))
