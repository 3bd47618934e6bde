"""Ask a device whether it computes flash attention over a KV cache of some type.

libllama does not ask where the cache is quantized: it would compute attention on the CPU, and copy the cache there.
"""

from __future__ import annotations

import ctypes

from pocketvlm.files.cache_type import CacheType
from pocketvlm.files.footprint import Heads
from pocketvlm.native import library
from pocketvlm.native.context import CACHE_TYPES
from pocketvlm.native.tensor import function

_F32, _F16 = 0, 1  # ggml_type
_CELLS, _ROWS = 256, (1, 512)  # of a trial: of the cache, and in a batch
_MEMORY = 64 << 10  # bytes for the descriptions of a few tensors


class _Parameters(ctypes.Structure):
    """struct ggml_init_params of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def is_supported(device: int, cache_type: CacheType, heads: Heads) -> bool:
    """Return whether the device with this number computes it, in small and large batches."""
    address, number = ctypes.c_void_p, ctypes.c_int64
    start = function("ggml_init", address, _Parameters)
    end = function("ggml_free", None, address)
    new = function("ggml_new_tensor_4d", address, address, ctypes.c_int, number, number, number, number)
    attention = function("ggml_flash_attn_ext", address, *[address] * 5, *[ctypes.c_float] * 3)
    supports = function("ggml_backend_dev_supports_op", ctypes.c_bool, address, address)
    where = library.device(device)
    kind = CACHE_TYPES[cache_type]
    for rows in _ROWS:
        context = start(_Parameters(_MEMORY, None, True))
        try:
            queries = new(context, _F32, heads.key_width, rows, heads.count, 1)
            keys = new(context, kind, heads.key_width, _CELLS, heads.kv_count, 1)
            values = new(context, kind, heads.value_width, _CELLS, heads.kv_count, 1)
            mask = new(context, _F16, _CELLS, rows, 1, 1)
            node = attention(context, queries, keys, values, mask, heads.key_width**-0.5, 0.0, 0.0)
            if not supports(where, node):
                return False
        finally:
            end(context)
    return True
