"""Mends of a graph, on nodes that ggml made: each where the fault is, and nowhere else."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pocketvlm.native import library, mtmd_graph_patches
from pocketvlm.native.mtmd_graph_patches import ClassPositionPatch, ClassTokenPatch, PlainResamplingPatch
from pocketvlm.native.tensor import GGMLTensor, read, write

WIDE, PATCHES = 4, 3
TABLE = np.arange(WIDE * (PATCHES + 1), dtype=np.float32).reshape(PATCHES + 1, WIDE)
ROLLED = np.roll(TABLE, -1, axis=0)


class _Parameters(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Graph:
    """Tensors of ggml in the CPU's memory, by their addresses."""

    def __init__(self) -> None:
        self.context = self._call("ggml_init", ctypes.c_void_p, (_Parameters, _Parameters(1 << 16, None, True)))
        self.token = self.new("v.class_embd", 1)
        self.patches = self.new("", PATCHES)
        self.table = self.new("v.position_embd.weight", PATCHES + 1)
        self.copy = self.new("CPU#v.position_embd.weight#0", PATCHES + 1)
        self.other = self.new("v.other.weight", PATCHES + 1)
        self.repeated = self.op("repeat", self.token, self.token)

    def allocate(self) -> None:
        self.backend = self._call("ggml_backend_init_by_type", ctypes.c_void_p, (ctypes.c_int, 0), self._at(None))
        self.buffer = self._call(
            "ggml_backend_alloc_ctx_tensors", ctypes.c_void_p, self._at(self.context), self._at(self.backend)
        )
        for table in (self.table, self.copy, self.other):
            write(table, TABLE.tobytes())

    def new(self, name: str, rows: int) -> int:
        sizes = ((ctypes.c_int64, WIDE), (ctypes.c_int64, rows))
        made = self._call("ggml_new_tensor_2d", ctypes.c_void_p, self._at(self.context), (ctypes.c_int, 0), *sizes)
        self._call("ggml_set_name", ctypes.c_void_p, self._at(made), (ctypes.c_char_p, name.encode()))
        return int(made)

    def op(self, name: str, first: int, second: int, *more: int) -> int:
        sources = (self._at(self.context), self._at(first), self._at(second))
        return int(self._call(f"ggml_{name}", ctypes.c_void_p, *sources, *((ctypes.c_int, n) for n in more)))

    def upscaled(self, source: int) -> int:
        """A node that resamples linearly with a wider filter."""
        sources = self._at(self.context), self._at(source)
        scale, mode = (ctypes.c_int, 2), (ctypes.c_int, 1 | 1 << 9)
        return int(self._call("ggml_upscale", ctypes.c_void_p, *sources, scale, mode))

    def close(self) -> None:
        for name, at in (("backend_buffer_free", self.buffer), ("backend_free", self.backend), ("free", self.context)):
            self._call(f"ggml_{name}", None, self._at(at))

    def values(self, table: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.frombuffer(read(table, TABLE.nbytes), np.float32).reshape(TABLE.shape)

    @staticmethod
    def _at(address: int | None) -> tuple[Any, Any]:
        return ctypes.c_void_p, address

    @staticmethod
    def _call(name: str, result: Any, *given: tuple[Any, Any]) -> Any:
        prototype = ctypes.CFUNCTYPE(result, *(kind for kind, _ in given))
        return prototype((name, library.llama()._lib))(*(value for _, value in given))


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()


@pytest.mark.parametrize("token", ["token", "repeated"])
def test_a_table_is_rolled_where_the_token_is_last(graph: Graph, token: str) -> None:
    node = graph.op("add", graph.op("concat", graph.patches, getattr(graph, token), 1), graph.table)
    graph.allocate()
    fault = ClassPositionPatch()
    for _ in range(2):
        fault.apply(node)
    assert fault.done and np.array_equal(graph.values(graph.table), ROLLED), "once"


@pytest.mark.parametrize("token", ["token", "repeated"])
def test_a_table_stays_where_the_token_is_first(graph: Graph, token: str) -> None:
    """As a libmtmd without the fault does it."""
    node = graph.op("add", graph.op("concat", getattr(graph, token), graph.patches, 1), graph.table)
    graph.allocate()
    fault = ClassPositionPatch()
    fault.apply(node)
    assert fault.done and np.array_equal(graph.values(graph.table), TABLE)


def test_a_table_stays_where_the_graph_is_another(graph: Graph) -> None:
    """And the fault is not said to be mended."""
    last = graph.op("concat", graph.patches, graph.token, 1)
    row = graph.new("", 1)
    foreign = graph.op("concat", graph.patches, graph.op("repeat", row, row), 1)
    tables = [graph.table, graph.copy, graph.other]
    nodes = [graph.op("add", patches, table) for patches, table in zip((graph.other, last, last), tables, strict=True)]
    nodes += [graph.op("add", foreign, graph.table), graph.op("mul", last, graph.table)]
    graph.allocate()
    fault = ClassPositionPatch()
    for node in nodes:
        fault.apply(node)
    assert not fault.done
    assert all(np.array_equal(graph.values(table), TABLE) for table in tables)


def test_a_copy_is_enough_to_see_the_right_order(graph: Graph) -> None:
    node = graph.op("add", graph.op("concat", graph.token, graph.patches, 1), graph.copy)
    graph.allocate()
    fault = ClassPositionPatch()
    fault.apply(node)
    assert fault.done and np.array_equal(graph.values(graph.copy), TABLE)


def test_a_token_is_put_first(graph: Graph) -> None:
    last, first = (
        graph.op("concat", *pair, 1) for pair in ((graph.patches, graph.token), (graph.token, graph.patches))
    )
    foreign = graph.op("concat", graph.patches, graph.other, 1)
    graph.allocate()
    for node in (last, first):
        fault = ClassTokenPatch()
        fault.apply(node)
        assert fault.done and GGMLTensor.from_address(node).src[:2] == [graph.token, graph.patches]
    fault = ClassTokenPatch()
    fault.apply(foreign)
    assert not fault.done and GGMLTensor.from_address(foreign).src[:2] == [graph.patches, graph.other]


def test_one_unknown_node_of_a_picture_is_enough(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [graph.upscaled(graph.patches) for _ in range(2)]
    graph.allocate()
    monkeypatch.setattr(mtmd_graph_patches, "is_known", lambda node: node != nodes[0])
    fault = PlainResamplingPatch()
    for node in nodes:
        fault.apply(node)
    assert not fault.done
    assert [GGMLTensor.from_address(node).op_params[0] for node in nodes] == [1 | 1 << 9, 1]
    fault.begin()
    fault.apply(nodes[1])
    assert fault.done
