"""Build an ONNX graph from a checkpoint's tensors, node by node. Large weights go to a file next to the graph.

Operators are standard ONNX (opset 17) and onnxruntime's own (com.microsoft). One tensor is in memory at a time, except
for a model so small that its weights are in the graph itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import ConversionError, shortened
from pocketvlm.system.extras import install_extra
from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.onnx.weights import Int4, Int8, floats, four_bits, halves, signed_bytes
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.weights import Value

OnnxType = Literal["fp32", "fp16", "int8", "int4"]
ONNX_TYPES: tuple[OnnxType, ...] = ("fp32", "fp16", "int8", "int4")
MICROSOFT = "com.microsoft"
INPUT, OUTPUT = "pixels", "embeddings"
SAMPLES_OF = "samples of "  # how the names of outputs with samples begin
SAMPLED = 17  # an odd number, so that samples come from all columns of a picture
FLOAT = 1  # TensorProto.FLOAT
_OPSET, _IR_VERSION = 17, 8  # opset 17 added LayerNormalization; IR version 8 belongs to it
_INLINE_LIMIT = 32 << 20  # bytes; up to this size, weights are in the graph itself
_SMALL = 4096  # bytes; tensors up to this size stay in the graph, because external ones take at least a page
_PAGE = 4096  # bytes; external data is mapped into memory by pages
_INT8_COMPUTE = 4  # accuracy_level of MatMulNBits: activations are quantized to int8 by blocks as well
_BLOCK = 32  # int4 weights that share a scale
_ZERO_OF_ACTIVATIONS = 24  # in uint8, of activations that hardly go below zero
_LEAST_SCALE = 1e-30  # for rows of zeros
Samples = Mapping[str, npt.NDArray[np.float32]]  # of a matrix's input, by the label of its weight


@dataclass(frozen=True)
class GraphOutput:
    """The output of a family's graph: `value` names float32 [tiles, tokens, width].

    Tiles have `tile` x `tile` pixels; with `tile` and `tokens` None, a tile may have any size that the family plans.
    A tile shows `frames` frames of a video; a picture is the same frame as often.
    """

    value: str
    width: int
    tile: int | None = None
    tokens: int | None = None
    frames: int = 1


class Graph:
    """A graph from uint8 `pixels` [tiles, height, width, 3 * frames] to float32 `embeddings` [tiles, tokens, width].

    Values are represented by their names, as in ONNX. `linear` computes in the type of the graph, everything else in
    float32. Use it as a context manager, because it writes external weights as they are added.
    """

    def __init__(
        self,
        path: Path,
        kind: OnnxType,
        weights: int,
        progress: Progress = silent,
        *,
        meta: bool = False,
        samples: Samples | None = None,
    ) -> None:
        """Start a graph of type `kind` at `path`.

        `weights` is about how many weights it will have, which decides whether they go to `<name>.onnx.data`. With
        `meta`, that file is sparse: it has its size but no weights. In int8, `samples` of the matrices' inputs make
        the rounding better.
        """
        self.path = path
        self.kind = kind
        self.data_path: Path | None = None
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []
        self._counts: dict[str, int] = {}
        self._quantized: dict[str, list[str]] = {}
        self._inputs: dict[str, tuple[str, int]] = {}  # of the matrices and their widths, by the weights' labels
        self._samples = samples or {}
        self._progress = progress
        self._meta = meta
        self._done, self._total = 0, weights
        self._data: BinaryIO | None = None
        self._onnx = _package(path)
        size = weights * {"fp32": 32, "fp16": 16, "int8": 8, "int4": 5}[kind] // 8
        if size > _INLINE_LIMIT:
            self.data_path = path.with_name(f"{path.name}.data")
            self._data = self.data_path.open("wb")
        progress(f"onnx {kind}", 0, weights)

    def __enter__(self) -> Graph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._data is not None:
            self._data.close()

    def op(
        self, op: str, *inputs: str, domain: str = "", outputs: Sequence[bool] = (True,), **attributes: Any
    ) -> list[str]:
        """Add a node and return the names of its outputs. "" stands for an optional input or output left out."""
        number = self._counts[op] = self._counts.get(op, -1) + 1
        name = f"{op}_{number}"
        names = [(f"{name}_{i}" if i else name) if wanted else "" for i, wanted in enumerate(outputs)]
        self._nodes.append(self._onnx.helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return names

    def one(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.op(op, *inputs, domain=domain, **attributes)[0]

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add an array with its own type, in the graph or in the external file, and return `name`."""
        if not self._meta:  # there, it would only fill memory
            values = np.asarray(values, order="C")
        proto = self._onnx.TensorProto()
        proto.name = name
        proto.dims.extend(values.shape)
        proto.data_type = self._onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        if self._data is None or values.nbytes <= _SMALL:
            proto.raw_data = values.tobytes()
        else:
            self._data.write(b"\0" * (-self._data.tell() % _PAGE))
            assert self.data_path is not None
            proto.data_location = self._onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", self.data_path.name),
                ("offset", str(self._data.tell())),
                ("length", str(values.nbytes)),
            ):
                entry = proto.external_data.add()
                entry.key, entry.value = key, value
            if self._meta:
                self._data.truncate(self._data.seek(values.nbytes, os.SEEK_CUR))
            else:
                self._data.write(values.data)
        self._tensors.append(proto)
        return name

    def vector(self, tensor: Tensor) -> str:
        """Add the weights of a norm or a bias in float32."""
        self._count(tensor)
        return self.constant(tensor.label, floats(tensor))

    def integers(self, *values: int) -> str:
        """Add an int64 constant with one dimension, such as a shape."""
        name = "shape_" + "_".join(map(str, values)).replace("-1", "any")
        return self._shared(name, np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Add a float32 scalar."""
        return self._shared(f"number_{value}", np.array(value, np.float32))

    def extents(self, *shape: int | str) -> str:
        """Add a shape. An extent that is known only at run time is the name of an int64 [1] value."""
        numbers = [extent for extent in shape if isinstance(extent, int)]
        if len(numbers) == len(shape):
            return self.integers(*numbers)
        parts = (extent if isinstance(extent, str) else self.integers(extent) for extent in shape)
        return self.one("Concat", *parts, axis=0)

    def reshape(self, value: str, *shape: int | str) -> str:
        return self.one("Reshape", value, self.extents(*shape))

    def _shared(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a constant unless there is one of that name."""
        exists = any(tensor.name == name for tensor in self._tensors)
        return name if exists else self.constant(name, values)

    def linear(
        self,
        value: str,
        weight: Tensor,
        bias: Tensor | None = None,
        sensitive: bool = False,
        *,
        inputs: npt.NDArray[np.float32] | None = None,
    ) -> str:
        """Add `value` [..., in] times `weight` [out, in] transposed, plus `bias`, in the graph's type.

        A `sensitive` matrix has at least float16. `inputs` are samples of `value`, by default those of `weight`.
        """
        self._count(weight)
        self._inputs[weight.label] = value, weight.shape[1]
        shift = self.vector(bias) if bias is not None else ""
        name = weight.label.removesuffix(".weight")
        if self.kind == "int8" and not sensitive:
            inputs = self.samples_of(weight) if inputs is None else inputs
            return self._int8(value, name, signed_bytes(weight, inputs), shift)
        if self.kind == "int4" and not sensitive:
            product = self._int4(value, name, four_bits(weight, _BLOCK))
        else:
            product = self._float(value, name, weight)
        return self.one("Add", product, shift) if shift else product

    def linear_by_rows(
        self, value: str, weight: Tensor, lowest: float | None, inputs: npt.NDArray[np.float32] | None
    ) -> str:
        """Add `value` [rows, in] times `weight` [out, in] transposed, in int8 with a scale for each row of `value`.

        No number of `value` is below `lowest`. `inputs` are samples of `value`.
        """
        self._count(weight)
        if lowest is None:
            zero, least, size = 128, _LEAST_SCALE, self.one("Abs", value)
        else:
            zero, least, size = _ZERO_OF_ACTIVATIONS, -lowest / _ZERO_OF_ACTIVATIONS, value
        largest = self.one("ReduceMax", size, axes=[-1], keepdims=0)
        scale = self.one("Max", self.one("Mul", largest, self.number(1 / (255 - zero))), self.number(least))
        zero_point = self._shared(f"zero_point_{zero}", np.array(zero, np.uint8))
        zeros = self.one("Expand", zero_point, self.one("Shape", scale))
        quantized = self.one("QuantizeLinear", value, scale, zeros, axis=0)
        name = weight.label.removesuffix(".weight")
        product = self._integer_product(quantized, name, signed_bytes(weight, inputs), self.number(1.0), zero_point)
        return self.one("Mul", product, self.reshape(scale, -1, 1))

    def samples_of(self, weight: Tensor) -> npt.NDArray[np.float32] | None:
        """Return samples of a matrix's input, float32 [samples, in], if there are any."""
        return self._samples.get(weight.label)

    def _float(self, value: str, name: str, weight: Tensor) -> str:
        matrix = floats(weight) if self.kind == "fp32" else halves(weight)
        stored = self.constant(f"{name}.weight", matrix.T)
        if self.kind != "fp32":  # halves the file; onnxruntime folds the cast when it loads the graph
            stored = self.one("Cast", stored, to=FLOAT)
        return self.one("MatMul", value, stored)

    def _int8(self, value: str, name: str, weight: Int8, bias: str) -> str:
        # Matrices with the same input, such as query, key and value, share its quantization.
        if value not in self._quantized:
            self._quantized[value] = self.op("DynamicQuantizeLinear", value, outputs=(True, True, True))
        quantized, scale, zero = self._quantized[value]
        return self._integer_product(quantized, name, weight, scale, zero, bias)

    def _integer_product(self, quantized: str, name: str, weight: Int8, scale: str, zero: str, bias: str = "") -> str:
        return self.one(
            "MatMulIntegerToFloat",
            quantized,
            self.constant(f"{name}.weight", weight.values.T),
            scale,
            self.constant(f"{name}.scale", weight.scales),
            zero,
            "",
            bias,
            domain=MICROSOFT,
        )

    def _int4(self, value: str, name: str, weight: Int4) -> str:
        return self.one(
            "MatMulNBits",
            value,
            self.constant(f"{name}.weight", weight.values),
            self.constant(f"{name}.scale", weight.scales),
            domain=MICROSOFT,
            K=weight.width,
            N=len(weight.values),
            bits=4,
            block_size=_BLOCK,
            accuracy_level=_INT8_COMPUTE,
        )

    def finish(self, output: GraphOutput, metadata: Mapping[str, Value], *, observed: bool = False) -> None:
        """Write the file. `metadata` goes to the model's metadata_props, each value as JSON.

        With `observed`, the graph also returns samples of `inputs`: every `SAMPLED`-th row.

        Raises ConversionError if onnx.checker rejects the graph.
        """
        helper, proto = self._onnx.helper, self._onnx.TensorProto
        assert self._nodes[-1].output[0] == output.value, "the output must be that of the last node"
        self._nodes[-1].output[0] = OUTPUT
        outputs = [(OUTPUT, ["tiles", output.tokens or "tokens", output.width])]
        if observed:
            outputs += self._observe()
        size = (output.tile or "height", output.tile or "width")
        graph = helper.make_graph(
            self._nodes,
            "vision",
            [helper.make_tensor_value_info(INPUT, proto.UINT8, ["tiles", *size, 3 * output.frames])],
            [helper.make_tensor_value_info(name, proto.FLOAT, shape) for name, shape in outputs],
            self._tensors,
        )
        model = helper.make_model(
            graph,
            producer_name="pocketvlm",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
        helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
        if self._data is not None:
            self._data.close()
        self.path.write_bytes(model.SerializeToString(deterministic=True))
        try:
            self._onnx.checker.check_model(str(self.path))
        except Exception as error:  # the checker raises errors of several libraries
            raise ConversionError(f"onnx.checker rejects the graph: {shortened(error)}", self.path) from error
        self._progress(f"onnx {self.kind}", self._total, self._total)

    def _observe(self) -> list[tuple[str, list[Any]]]:
        """Make samples of the matrices' inputs outputs of the graph, and return their names and shapes."""
        outputs: list[tuple[str, list[Any]]] = []
        first, last, step = self.integers(0), self.integers(np.iinfo(np.int64).max), self.integers(SAMPLED)
        for value, width in dict(self._inputs.values()).items():
            self.one("Slice", self.reshape(value, -1, width), first, last, first, step)
            self._nodes[-1].output[0] = f"{SAMPLES_OF}{value}"
            outputs.append((f"{SAMPLES_OF}{value}", ["samples", width]))
        return outputs

    @property
    def inputs(self) -> Mapping[str, str]:
        """The inputs of the matrices by the labels of their weights."""
        return {label: value for label, (value, _) in self._inputs.items()}

    def _count(self, tensor: Tensor) -> None:
        self._done += tensor.data.size
        self._progress(f"onnx {self.kind}", min(self._done, self._total), self._total)


def _package(path: Path) -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
    except ImportError as error:
        raise ConversionError(f"the onnx package is missing: {install_extra('convert')}", path) from error
    return onnx
