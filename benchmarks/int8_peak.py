"""What the processor can do at most with int8: the measure for prompts and vision encoders, and their operations."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pocketvlm.files.gguf_header import GGUFHeader

_LAYER = re.compile(r"blk\.\d+\.")


def int8_peak(threads: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return operations per second of onnxruntime's MatMulInteger with 512 rows: the best of five runs after one."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, depth, columns = 512, 1536, 8960
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.integers(-127, 128, (depth, columns), dtype=np.int8), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    ends = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in (("x", TensorProto.UINT8), ("y", TensorProto.INT32))
    ]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    values = {"x": rng.integers(0, 256, (rows, depth), dtype=np.uint8)}
    session.run(None, values)
    best = float("inf")
    for _ in range(5):
        began = clock()
        session.run(None, values)
        best = min(best, clock() - began)
    return 2 * rows * depth * columns / best


def prompt_operations(header: GGUFHeader) -> int:
    """Return the operations of the matrices of a language model for a token of a prompt: two for each weight."""
    matrices = [tensor.shape for tensor in header.tensors if _LAYER.match(tensor.name) and len(tensor.shape) == 2]
    return 2 * sum(map(math.prod, matrices))


def encoder_operations(metadata: Mapping[str, Any], patches: int) -> int:
    """Return the operations of a vision transformer for a tile: its layers' matrices, and attention to all patches."""
    width, inner, layers = (
        int(metadata[f"clip.vision.{key}"]) for key in ("embedding_length", "feed_forward_length", "block_count")
    )
    matrices = 4 * width**2 + (3 if metadata.get("clip.use_silu") else 2) * width * inner
    return 2 * layers * patches * (matrices + 2 * patches * width)
