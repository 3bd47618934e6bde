"""How much memory the parts of a model take, from the headers of its files. All sizes are bytes.

The factors were measured (llama-cpp-python 0.3.36, onnxruntime 1.31, x86-64); `pocketvlm plan` is tested against them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader

_LAYER = re.compile(r"blk\.(\d{1,9})\.")
_INPUT = ("token_embd", "per_layer_token_embd")  # how the names of tensors before the first layer begin
_F16, _F32 = 2, 4
# Memory of an opened ONNX encoder, as a factor of its files' size: onnxruntime copies weights into an order of its own,
# and float16 becomes float32.
_ONNX_FACTORS = {"fp32": 1.0, "fp16": 2.4, "int8": 1.55, "int4": 1.35}
_ROUNDED = 1.2  # of int8 encoders with "pocketvlm.rounding": their MLPs are in int8 as well
_MTMD_GRAPHS = 5 << 20  # libmtmd's graphs
_MASK = 8  # for each pair of patches, where attention has windows: libmtmd fills masks of all pairs
_FLOAT_ACTIVATIONS = 1.4  # onnxruntime's activations in float32, as a factor of those in int8
_ONNX_PAGES = 11 << 20  # pages of onnxruntime's library that its first run needs
_GATED = "clip.use_silu"


@dataclass(frozen=True)
class Weights:
    """Bytes of a language model: of each layer, of the input (embeddings), and of the output (norm and matrix).

    `cell` has the bytes of a KV cache cell in each layer, in float16: an upper bound for layers with windows or states.
    """

    layers: tuple[int, ...]
    input: int
    output: int
    cell: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.layers) + self.input + self.output


def weights_of(header: GGUFHeader) -> Weights:
    count = _number(header.metadata.get(f"{header.architecture}.block_count"))
    layers, rest = [0] * count, {"input": 0, "output": 0}
    for tensor in header.tensors:
        layer = _LAYER.match(tensor.name)
        if layer and int(layer[1]) < count:
            layers[int(layer[1])] += tensor.n_bytes
        else:
            rest["input" if tensor.name.startswith(_INPUT) else "output"] += tensor.n_bytes
    if not any(tensor.name == "output.weight" for tensor in header.tensors):
        # A tied matrix is loaded twice where input and output run on different devices.
        rest["output"] += sum(tensor.n_bytes for tensor in header.tensors if tensor.name == "token_embd.weight")
    return Weights(tuple(layers), rest["input"], rest["output"], _cell(header, count))


def encoder_bytes(metadata: Mapping[str, Any], size: int, *, onnx: bool) -> int:
    """Return the memory of an opened vision encoder; `size` is that of its files."""
    if not onnx:
        return size + _MTMD_GRAPHS
    if metadata.get("pocketvlm.rounding"):
        return int(size * _ROUNDED)
    return int(size * _ONNX_FACTORS.get(str(metadata.get("pocketvlm.type")), 1.55))


def encoder_mapped(*, onnx: bool) -> int:
    """Return the pages of libraries that a vision encoder touches, in addition to those that loading them touches."""
    return _ONNX_PAGES if onnx else _ONNX_PAGES // 3


def encoder_scratch(metadata: Mapping[str, Any], patches: int, *, onnx: bool) -> int:
    """Return the memory of a vision encoder's activations while it encodes a tile of `patches`."""
    width = _number(metadata.get("clip.vision.embedding_length"))
    inner = _number(metadata.get("clip.vision.feed_forward_length"))
    activations = _F32 * patches * ((3 if metadata.get(_GATED) else 2) * inner + 4 * width)
    if onnx:
        return int(activations * (_FLOAT_ACTIVATIONS if metadata.get("pocketvlm.type") in ("fp32", "int4") else 1))
    return activations + (_MASK * patches**2 if metadata.get("clip.vision.n_wa_pattern") else 0)


@dataclass(frozen=True)
class Heads:
    """Attention of a kind of layer: numbers of heads, and how many values those of keys and of values have."""

    count: int
    kv_count: int
    key_width: int
    value_width: int


def heads_of(header: GGUFHeader) -> frozenset[Heads]:
    """Return the different heads of all layers that have a cache."""
    layers = _number(header.metadata.get(f"{header.architecture}.block_count"))
    counts, kv_counts = _by_layer(header, "head_count", 1, layers), _kv_counts(header, layers)
    kinds = {Heads(*kind) for kind in zip(counts, kv_counts, *_key_value_widths(header, layers), strict=False)}
    windows = _by_layer(header, "key_length_swa", 0, 1) + _by_layer(header, "value_length_swa", 0, 1)
    if all(windows):
        kinds |= {replace(kind, key_width=windows[0], value_width=windows[-1]) for kind in kinds}
    return frozenset(kind for kind in kinds if kind.count and kind.kv_count)


def _cell(header: GGUFHeader, layers: int) -> tuple[int, ...]:
    kv_heads = _kv_counts(header, layers)
    key_widths, value_widths = _key_value_widths(header, layers)
    if len(kv_heads) < layers:
        return ()
    # The last layers may use the keys and values of these.
    with_cells = layers - _number(header.metadata.get(f"{header.architecture}.attention.shared_kv_layers"))
    sizes = [
        _F16 * count * (key + value) for count, key, value in zip(kv_heads, key_widths, value_widths, strict=False)
    ]
    return tuple(size if layer < with_cells else 0 for layer, size in enumerate(sizes))


def _key_value_widths(header: GGUFHeader, layers: int) -> tuple[list[int], list[int]]:
    """Return the widths of a head of keys and of values in each layer."""
    width = _number(header.metadata.get(f"{header.architecture}.embedding_length")) // _most_heads(header)
    return _by_layer(header, "key_length", width, layers), _by_layer(header, "value_length", width, layers)


def _kv_counts(header: GGUFHeader, layers: int) -> list[int]:
    return _by_layer(header, "head_count_kv", _most_heads(header), layers)


def _most_heads(header: GGUFHeader) -> int:
    return max(_by_layer(header, "head_count", 1, 1), default=1) or 1


def _by_layer(header: GGUFHeader, key: str, default: int, layers: int) -> list[int]:
    value = header.metadata.get(f"{header.architecture}.attention.{key}", default)
    return [_number(v) for v in value] if isinstance(value, list) else [_number(value)] * layers


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
