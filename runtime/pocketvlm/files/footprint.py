"""What parts of a model take in memory, from the headers of its files. Bytes throughout.

The factors were measured (llama-cpp-python 0.3.36, onnxruntime 1.31, x86-64); `pocketvlm plan` is tested against them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader

_LAYER = re.compile(r"blk\.(\d+)\.")
_INPUT = ("token_embd", "per_layer_token_embd")
_F16, _F32 = 2, 4
# onnxruntime copies what it computes with into an order of its own; float16 becomes float32.
_OPENED = {"fp32": 1.0, "fp16": 2.4, "int8": 1.55, "int4": 1.35}
_OPENING = 5 << 20  # libmtmd's graphs
_MASK = 8  # a pair of patches, where attention has windows: libmtmd fills masks of all pairs
_WIDE = 1.4  # onnxruntime's activations in float32, to those of int8
_TOUCHED = 11 << 20  # pages of onnxruntime's library that its first run needs
_GATED = "clip.use_silu"


@dataclass(frozen=True)
class Weights:
    """Of a language model: each layer, and what is of no layer (embeddings, the output's norm and matrix).

    `cell` is what a cell of the KV cache takes in each layer, in float16. Where windows or states make do with less,
    that is a bound.
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
        found = _LAYER.match(tensor.name)
        if found and int(found[1]) < count:
            layers[int(found[1])] += tensor.n_bytes
        else:
            rest["input" if tensor.name.startswith(_INPUT) else "output"] += tensor.n_bytes
    if not any(tensor.name == "output.weight" for tensor in header.tensors):
        # A tied matrix is there twice where input and output are computed apart.
        rest["output"] += sum(tensor.n_bytes for tensor in header.tensors if tensor.name == "token_embd.weight")
    return Weights(tuple(layers), rest["input"], rest["output"], _cell(header, count))


def encoder_bytes(metadata: Mapping[str, Any], size: int, *, onnx: bool) -> int:
    """An opened vision encoder; `size` is that of its files."""
    return int(size * _OPENED.get(str(metadata.get("pocketvlm.type")), 1.55)) if onnx else size + _OPENING


def encoder_mapped(*, onnx: bool) -> int:
    """What it brings into memory from libraries, besides what they take when they are loaded."""
    return _TOUCHED if onnx else _TOUCHED // 3


def encoder_scratch(metadata: Mapping[str, Any], patches: int, *, onnx: bool) -> int:
    """While it sees a tile of so many patches."""
    width = _number(metadata.get("clip.vision.embedding_length"))
    inner = _number(metadata.get("clip.vision.feed_forward_length"))
    activations = _F32 * patches * ((3 if metadata.get(_GATED) else 2) * inner + 4 * width)
    if onnx:
        return int(activations * (_WIDE if metadata.get("pocketvlm.type") in ("fp32", "int4") else 1))
    return activations + (_MASK * patches**2 if metadata.get("clip.vision.n_wa_pattern") else 0)


def _cell(header: GGUFHeader, layers: int) -> tuple[int, ...]:
    data, arch = header.metadata, header.architecture

    def each(key: str, default: int) -> list[int]:
        value = data.get(f"{arch}.attention.{key}", default)
        return [_number(v) for v in value] if isinstance(value, list) else [_number(value)] * layers

    heads = max(each("head_count", 1), default=1) or 1
    keys = each("head_count_kv", heads)
    length = _number(data.get(f"{arch}.embedding_length")) // heads
    k, v = each("key_length", length), each("value_length", length)
    if len(keys) < layers:
        return ()
    own = layers - _number(data.get(f"{arch}.attention.shared_kv_layers"))  # the others use keys and values of these
    cells = zip(keys, k, v, strict=False)
    return tuple(_F16 * n * (a + b) if at < own else 0 for at, (n, a, b) in enumerate(cells))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
