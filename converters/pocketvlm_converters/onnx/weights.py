"""Weights of ONNX graphs: float32, float16, int8 with a scale per row, int4 with a scale per block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.checkpoint.safetensors import as_floats
from pocketvlm_converters.onnx.rounding import round_for


@dataclass(frozen=True)
class Int8:
    """A weight is value * scale, with `values` int8 [out, in] and `scales` float32 [out]."""

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Int4:
    """The layout of com.microsoft.MatMulNBits: `values` uint8 [out, blocks, block / 2], low nibble first.

    A weight is (nibble - 8) * scale, with `scales` float32 [out * blocks]. `width` is the number of weights in a row;
    the last block is padded.
    """

    values: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    width: int


def floats(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Return all weights as float32, in the tensor's shape. Raises CheckpointError for NaN or infinity."""
    if _meta(tensor):
        return np.broadcast_to(np.float32(0), tensor.shape)
    weights = np.empty(tensor.shape, np.float32)
    rows = weights.reshape(-1, tensor.shape[-1] if tensor.shape else 1)
    start = 0
    for block in tensor.blocks():
        rows[start : start + len(block)] = as_floats(block)
        start += len(block)
    return weights


def halves(tensor: Tensor) -> npt.NDArray[np.float16]:
    """Return all weights as float16. Raises CheckpointError for a weight out of its range."""
    if _meta(tensor):
        return np.broadcast_to(np.float16(0), tensor.shape)
    with np.errstate(over="ignore"):
        weights = floats(tensor).astype(np.float16)
    if not np.isfinite(weights).all():
        raise CheckpointError(f"tensor {tensor.name} has weights beyond float16's range; use fp32", tensor.path)
    return weights


def signed_bytes(tensor: Tensor, inputs: npt.NDArray[np.float32] | None = None) -> Int8:
    """Quantize each row symmetrically: zero stays zero, so the integer product needs no correction.

    `inputs` are samples of what the matrix is multiplied with, float32 [samples, in]; with them, errors cancel out.
    """
    if _meta(tensor):
        return Int8(np.broadcast_to(np.int8(0), tensor.shape), np.ones(tensor.shape[:1], np.float32))
    weights = floats(tensor)
    largest = np.abs(weights).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    weights /= scales[:, None]
    return Int8(np.rint(weights).astype(np.int8) if inputs is None else round_for(weights, inputs), scales)


def four_bits(tensor: Tensor, block: int) -> Int4:
    """Quantize each block of a row; the weight with the largest absolute value becomes -8, as in ggml's Q4_0."""
    weights = floats(tensor)
    rows, width = weights.shape
    blocks = -(-width // block)
    if width % block:
        weights = np.pad(weights, ((0, 0), (0, blocks * block - width)))
    grouped = weights.reshape(rows, blocks, block)
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(-1, keepdims=True), -1)
    scales = extreme / -8
    nibbles = np.clip(np.rint(grouped / np.where(scales == 0, 1, scales)) + 8, 0, 15).astype(np.uint8)
    packed: npt.NDArray[np.uint8] = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    return Int4(packed, scales.reshape(-1).astype(np.float32), width)


def _meta(tensor: Tensor) -> bool:
    """Return whether the tensor is one broadcast value, as in a checkpoint without weights (meta)."""
    return isinstance(tensor.data, np.ndarray) and tensor.data.size > 1 and not any(tensor.data.strides)
