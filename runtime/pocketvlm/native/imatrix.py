"""Collect the numbers of an importance matrix: the inputs of each matrix of a language model that is evaluated.

Sums and counts are those of llama.cpp's tools/imatrix for the tensors of the layers, with two differences: batches of
less than 16 tokens count too, and sums are float64.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import EngineError
from pocketvlm.native import library
from pocketvlm.native.tensor import GGMLTensor, is_known, op_desc

_F32 = 0  # GGML_TYPE_F32
_LAYER_PREFIX = b"blk."
_BLOCK_ROWS = 64  # rows of inputs that are converted to float64 at once
_PLAIN, _ROUTED = b"MUL_MAT", b"MUL_MAT_ID"


class Collector:
    """Sums of squared inputs of every matrix in a layer, by the tensor's name in the GGUF file.

    A `Context` that gets a collector passes it everything that it evaluates. Weights and activations must be in the
    CPU's memory. `sums` are float64 [matrices, in] and `counts` int64 [matrices], with a matrix for each expert.
    """

    def __init__(self) -> None:
        lib = library.llama()
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, npt.NDArray[np.int64]] = {}
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise EngineError for an error in the callback: no exception can pass through libllama."""
        if self._error is not None:
            raise EngineError(f"cannot read activations: {self._error}") from self._error

    def add(self, node: GGMLTensor, routed: bool) -> None:
        """Add the inputs of one evaluated node: `routed` to experts (MUL_MAT_ID), else MUL_MAT."""
        weight, inputs = node.source(0), node.source(1)
        matrices = weight.ne[2] * weight.ne[3]
        name = weight.name.decode()
        values = _view(inputs, ctypes.c_float, np.float32)  # [i3, i2, rows, in]
        sums = self.sums.setdefault(name, np.zeros((matrices, inputs.ne[0])))
        counts = self.counts.setdefault(name, np.zeros(matrices, np.int64))
        if sums.shape != (matrices, inputs.ne[0]):
            raise ValueError(f"{name} has {inputs.ne[0]} inputs now, and had {sums.shape[1]} before")
        if not routed:
            # Axes of the inputs that the matrix lacks are further rows.
            for i3, i2 in np.ndindex(values.shape[:2]):
                number = (i3 % weight.ne[3]) * weight.ne[2] + i2 % weight.ne[2]
                for start in range(0, values.shape[2], _BLOCK_ROWS):
                    rows = values[i3, i2, start : start + _BLOCK_ROWS].astype(np.float64)
                    sums[number] += np.einsum("ij,ij->j", rows, rows)
            counts += values.shape[0] * values.shape[1] * values.shape[2] // matrices
            return
        chosen = _view(node.source(2), ctypes.c_int32, np.int32)[0, 0]  # [tokens, experts used]
        for token, expert in np.ndindex(chosen.shape):
            number = chosen[token, expert]
            sums[number] += values[0, token, expert % values.shape[2]].astype(np.float64) ** 2
            counts[number] += 1

    def _on_node(self, address: int, ask: bool, _data: object) -> bool:
        """Handle ggml_backend_sched_eval_callback: with `ask`, return whether to observe the node, else add it."""
        try:
            node = GGMLTensor.from_address(address)
            operation = op_desc(address)
            if ask:
                return operation in (_PLAIN, _ROUTED) and self._is_layer_input(node)
            self.add(node, operation == _ROUTED)
        except BaseException as error:  # `check` raises it when native code is no longer on the stack
            self._error = self._error or error
            return not ask  # False would end the evaluation in the middle
        return True

    def _is_layer_input(self, node: GGMLTensor) -> bool:
        weight = node.source(0)
        if not is_known(ctypes.addressof(weight)):
            raise ValueError("this libggml has another ggml_tensor structure than pocketvlm knows")
        return bool(weight.name.startswith(_LAYER_PREFIX) and node.source(1).type == _F32)


def _view(tensor: GGMLTensor, item: Any, dtype: Any) -> npt.NDArray[Any]:
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    span = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True)) + ctypes.sizeof(item)
    memory = (ctypes.c_uint8 * span).from_address(tensor.data)
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, buffer=memory, strides=strides)
    return array
