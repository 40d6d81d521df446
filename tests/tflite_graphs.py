"""Small real .tflite files that take part in tests as detectors: those of `graphs`, for LiteRT.

The same mean colours of cells go through the same linear layers, so that both files find the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from graphs import CELL, CELLS

from rfdetr_edge.associated import with_document

tfl = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")

TYPES = {
    np.dtype(np.float32): tfl.TensorType.FLOAT32,
    np.dtype(np.int32): tfl.TensorType.INT32,
    np.dtype(np.int8): tfl.TensorType.INT8,
    np.dtype(np.uint8): tfl.TensorType.UINT8,
}


class Rounding(NamedTuple):
    """real = (stored - zero_point) * scale."""

    scale: float
    zero_point: int


COLOURS = Rounding(0.04, -3)  # what an input holds in 8 bits
BOXES = Rounding(1 / 256, -128)
SCORES = Rounding(0.1, 5)


class Graph:
    """One subgraph in the making; tensors are known by their number."""

    def __init__(self) -> None:
        self.subgraph = tfl.SubGraphT()
        self.subgraph.tensors, self.subgraph.operators = [], []
        self.model = tfl.ModelT()
        self.model.version = 3
        self.model.operatorCodes, self.model.subgraphs = [], [self.subgraph]
        self.model.buffers = [tfl.BufferT()]  # the first is empty by convention

    def tensor(
        self,
        name: str,
        shape: Sequence[int | None],
        dtype: Any = np.float32,
        rounding: Rounding | None = None,
    ) -> int:
        """shape: None for a size that is chosen at run time."""
        made = tfl.TensorT()
        made.name, made.type, made.buffer = name, TYPES[np.dtype(dtype)], 0
        made.shape = [1 if size is None else size for size in shape]
        if None in shape:
            made.shapeSignature = [-1 if size is None else size for size in shape]
        if rounding is not None:
            made.quantization = tfl.QuantizationParametersT()
            made.quantization.scale = [rounding.scale]
            made.quantization.zeroPoint = [rounding.zero_point]
        self.subgraph.tensors.append(made)
        return len(self.subgraph.tensors) - 1

    def constant(self, name: str, values: np.ndarray) -> int:
        """A tensor that the file holds."""
        index = self.tensor(name, values.shape, values.dtype)
        buffer = tfl.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.subgraph.tensors[index].buffer = len(self.model.buffers) - 1
        return index

    def node(self, kind: str, inputs: list[int], output: int, **options: Any) -> int:
        """Adds an operator and gives its output.

        kind: its name in the schema, or that of a custom one. options: of the schema's options
        table `kind`, which differs from the operator's name, then its fields.
        """
        code = tfl.OperatorCodeT()
        builtin = vars(tfl.BuiltinOperator).get(kind)
        if builtin is None:
            builtin, code.customCode = tfl.BuiltinOperator.CUSTOM, kind
        code.builtinCode = builtin
        code.deprecatedBuiltinCode = min(builtin, 127)
        code.version = 1
        made = tfl.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = (
            len(self.model.operatorCodes),
            inputs,
            [output],
        )
        self.model.operatorCodes.append(code)
        if options:
            table = options.pop("table")
            made.builtinOptionsType = vars(tfl.BuiltinOptions)[table]
            made.builtinOptions = vars(tfl)[f"{table}T"]()
            for field, value in options.items():
                setattr(made.builtinOptions, field, value)
        self.subgraph.operators.append(made)
        return output

    def packed(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], *, signature: bool
    ) -> bytes:
        """The file. signature: whether it says how inputs and outputs are called."""
        self.subgraph.inputs, self.subgraph.outputs = [*inputs.values()], [*outputs.values()]
        if signature:
            made = tfl.SignatureDefT()
            made.signatureKey, made.subgraphIndex = "serving_default", 0
            made.inputs, made.outputs = _maps(inputs), _maps(outputs)
            self.model.signatureDefs = [made]
        return packed(self.model)


def packed(model: Any) -> bytes:
    """The file of a schema's ModelT."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _maps(named: Mapping[str, int]) -> list[Any]:
    made = []
    for name, index in named.items():
        entry = tfl.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        made.append(entry)
    return made


def detector(
    *,
    slots: int = len(CELLS),
    batch: int | None = 1,
    resolution: tuple[int, int] = (64, 96),
    layout: Literal["nchw", "nhwc"] = "nchw",
    outputs: tuple[str, str] = ("dets", "labels"),
    scores_first: bool = False,
    signature: bool = True,
    rounded: type[np.int8] | type[np.uint8] | None = None,
    last: str | None = None,
    convolved: bool = False,
    version: int = 1,
) -> bytes:
    """A detector of (height / 16) * (width / 16) queries.

    batch: None leaves it open. scores_first: the order of the outputs. rounded: what inputs and
    outputs are stored in, by COLOURS, BOXES and SCORES (128 more for uint8). last: an operator of
    this name stands behind the scores. convolved: a convolution that changes nothing stands first.
    version: that its operators claim.
    """
    graph = Graph()
    height, width = resolution
    rows, columns = height // CELL, width // CELL
    sides = (3, height, width) if layout == "nchw" else (height, width, 3)
    dtype = np.float32 if rounded is None else rounded
    image = x = graph.tensor("image", (batch, *sides), dtype, _of(COLOURS, rounded))
    if rounded is not None:
        x = graph.node("DEQUANTIZE", [x], graph.tensor("real", (batch, *sides)))
    if layout == "nchw":
        order = graph.constant("order", np.array([0, 2, 3, 1], np.int32))
        x = graph.node("TRANSPOSE", [x, order], graph.tensor("nhwc", (batch, height, width, 3)))
    if convolved:
        kernel = graph.constant("kernel", np.eye(3, dtype=np.float32).reshape(3, 1, 1, 3))
        bias = graph.constant("kernel bias", np.zeros(3, np.float32))
        steps = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        same = graph.tensor("convolved", (batch, height, width, 3))
        options = {"table": "Conv2DOptions", "padding": 1, **steps}
        x = graph.node("CONV_2D", [x, kernel, bias], same, **options)
    window = {"strideH": CELL, "strideW": CELL, "filterHeight": CELL, "filterWidth": CELL}
    pooled = graph.tensor("pooled", (batch, rows, columns, 3))
    x = graph.node("AVERAGE_POOL_2D", [x], pooled, table="Pool2DOptions", padding=1, **window)
    cells = graph.constant("cells", np.array([-1, rows * columns, 3], np.int32))
    colours = graph.tensor("colours", (batch, rows * columns, 3))
    x = graph.node("RESHAPE", [x, cells], colours)
    rng = np.random.default_rng(0)
    to_box, to_scores = rng.normal(size=(3, 4)), rng.normal(size=(3, slots)) * 3
    raw = _linear(graph, x, to_box, "raw", (batch, rows * columns))
    boxes = graph.node("LOGISTIC", [raw], graph.tensor("boxes", (batch, rows * columns, 4)))
    scores = _linear(graph, x, to_scores, "scores", (batch, rows * columns))
    if last is not None:
        scores = graph.node(last, [scores], graph.tensor("last", (batch, rows * columns, slots)))
    found = {outputs[0]: (boxes, 4, BOXES), outputs[1]: (scores, slots, SCORES)}
    if scores_first:
        found = dict(reversed(found.items()))
    given = {}
    for name, (index, size, rounding) in found.items():
        if rounded is not None:
            shape = (batch, rows * columns, size)
            stored = graph.tensor(f"stored {name}", shape, rounded, _of(rounding, rounded))
            index = graph.node("QUANTIZE", [index], stored)
        given[name] = index
    for code in graph.model.operatorCodes:
        code.version = version
    return graph.packed({"input": image}, given, signature=signature)


def _of(rounding: Rounding, rounded: type | None) -> Rounding | None:
    if rounded is None:
        return None
    shift = 128 if rounded is np.uint8 else 0
    return Rounding(rounding.scale, rounding.zero_point + shift)


def _linear(
    graph: Graph, x: int, weight: np.ndarray, name: str, rows: tuple[int | None, int]
) -> int:
    """weight: (in, out)."""
    stored = graph.constant(f"{name} weight", weight.T.astype(np.float32))
    bias = graph.constant(f"{name} bias", np.zeros(weight.shape[1], np.float32))
    target = graph.tensor(name, (*rows, weight.shape[1]))
    options = {"table": "FullyConnectedOptions", "keepNumDims": True}
    return graph.node("FULLY_CONNECTED", [x, stored, bias], target, **options)


def save_tflite(path: Path, *, metadata_json: str | None = None, **options: Any) -> Path:
    """Writes a `detector`, with its document where there is one."""
    model = detector(**options)
    path.write_bytes(model if metadata_json is None else with_document(model, metadata_json))
    return path
