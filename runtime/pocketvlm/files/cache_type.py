"""Types of the KV cache: what a value takes, and whether a model's heads allow a type."""

from __future__ import annotations

from typing import Literal

from pocketvlm.errors import RequestError
from pocketvlm.files.footprint import heads_of
from pocketvlm.files.gguf_header import GGUFHeader

CacheType = Literal["f32", "f16", "q8_0"]
_BYTES: dict[CacheType, float] = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # of a value
_BLOCK = 32  # values of q8_0 that share a scale


def cache_bytes(size: int, cache_type: CacheType) -> int:
    """Return the bytes in `cache_type` of what takes `size` bytes in float16."""
    return int(size * _BYTES[cache_type] / _BYTES["f16"])


def allows(header: GGUFHeader, cache_type: CacheType) -> bool:
    """Return whether every head of the model can be stored in this type."""
    return cache_type != "q8_0" or not _odd_widths(header)


def require_cache_type(header: GGUFHeader, cache_type: CacheType) -> None:
    """Raise RequestError where the model's heads do not allow this type, as libllama would."""
    if not allows(header, cache_type):
        raise RequestError(
            f"{cache_type} needs heads of a multiple of {_BLOCK} values, but {header.path.name} has some of "
            f"{min(_odd_widths(header))}; use f16",
            "cache_type",
        )


def _odd_widths(header: GGUFHeader) -> list[int]:
    widths = (width for heads in heads_of(header) for width in (heads.key_width, heads.value_width))
    return [width for width in widths if width % _BLOCK]
