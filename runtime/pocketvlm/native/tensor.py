"""A tensor of ggml, by its address: its structure, and what libggml says of it."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from pocketvlm.native import library


class GGMLTensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, down to its name.

    `ne` counts elements and `nb` is in bytes, the innermost axis first; `src` holds addresses.
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
    """What a node computes: MUL_MAT, CONCAT."""
    found: bytes = function("ggml_op_desc", ctypes.c_char_p, ctypes.c_void_p)(address)
    return found


def name_address(address: int) -> int:
    """Where libggml has the name of a tensor."""
    return int(function("ggml_get_name", ctypes.c_void_p, ctypes.c_void_p)(address))


def is_known(address: int) -> bool:
    """Whether libggml's structure is still the one above, so that what is read with it means something."""
    return name_address(address) == address + GGMLTensor.name.offset


def read(address: int, size: int) -> bytes:
    """The first `size` bytes of a tensor's values, on whatever device they lie."""
    values = ctypes.create_string_buffer(size)
    _copy("ggml_backend_tensor_get")(address, values, 0, size)
    return values.raw


def write(address: int, values: bytes) -> None:
    """Replace the first of a tensor's values."""
    _copy("ggml_backend_tensor_set")(address, values, 0, len(values))


def _copy(name: str) -> Any:
    return function(name, None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


@cache
def function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of libggml, with types of its own: those set on an attribute of the library hold for all."""
    return ctypes.CFUNCTYPE(result, *arguments)((name, library.llama()._lib))
