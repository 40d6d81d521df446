"""Graph clean-up in standard operators: the same function with less around its matrix products.

ONNX Runtime's basic optimisations do most of the work. They are independent of the hardware, stay
within ONNX, fold constants and static shapes, and make a linear layer one Gemm where all sizes are
known. Where the batch is open the layers become Gemm nodes here.
"""

import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from rfdetr_edge.errors import ArtifactError

_ERRORS_ONLY = 3
# Not even derived from RuntimeError.
_REFUSALS = (
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidGraph,
    ort_errors.InvalidArgument,
    ort_errors.Fail,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
# The second round shares what the first made for each layer on its own.
_ROUNDS = 2
# How a node is called within its layer; ONNX Runtime adds the second part.
_OPERATOR = re.compile(r"/(?:MatMul|Conv|Gemm)(_\d+)?(?:/MatMulAddFusion)?$")


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function in fewer nodes; metadata, inputs and outputs stay as they are.

    Linear layers become Gemm nodes, (tokens, in) @ (in, out) + bias. These and convolutions are
    named after their layer, each by a name of its own.
    Raises ArtifactError for a graph that ONNX Runtime cannot load.
    """
    graph = model
    for _ in range(_ROUNDS):
        graph = folded(graph)
    _fuse_linear_layers(graph.graph)
    _name_layers(graph.graph)
    used = {node.domain for node in graph.graph.node}
    versions = [entry for entry in graph.opset_import if entry.domain in used]
    del graph.opset_import[:]
    graph.opset_import.extend(versions)
    graph.ir_version = model.ir_version
    graph.producer_name, graph.producer_version = model.producer_name, model.producer_version
    del graph.metadata_props[:]
    graph.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """One round of ONNX Runtime's basic optimisations. Errors as above."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except (*_REFUSALS, ValueError) as error:
            raise ArtifactError(f"ONNX Runtime cannot load the graph: {error}") from error
        return onnx.load(path)


def _fuse_linear_layers(graph: onnx.GraphProto) -> None:
    """Products with a constant matrix, plus a constant bias, as Gemm of any number of tokens.

    ONNX Runtime does so itself unless a size is open.
    """
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    sums = {  # product -> the Add node that alone reads it, and its other input
        product: (node, other)
        for node in graph.node
        if node.op_type == "Add"
        for product, other in (node.input, reversed(node.input))
        if uses[product] == 1
    }
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    gone: set[str] = set()  # outputs of the nodes that are now part of another
    sizes: dict[str, list[int]] = {}
    for node in graph.node:
        product = node.output[0]
        if product in gone:
            continue
        matrix = constants.get(node.input[1], ()) if node.op_type == "MatMul" else ()
        add, bias = sums.get(product, (node, ""))
        if len(matrix) != 2 or constants.get(bias) != matrix[1:]:
            nodes.append(node)
            continue
        data, weight = node.input
        # named after what they are made of, so that layers that read the same share them
        rows, places, shape = f"{data}/rows", f"{data}/places", f"{data}/places_{matrix[1]}"
        width, flat = f"width_{matrix[1]}", f"rows_of_{matrix[0]}"
        sizes |= {width: [matrix[1]], flat: [-1, matrix[0]]}
        for new in (
            helper.make_node("Reshape", [data, flat], [rows]),
            helper.make_node("Gemm", [rows, weight, bias], [product], name=node.name),
            helper.make_node("Shape", [data], [places], end=-1),
            helper.make_node("Concat", [places, width], [shape], axis=0),
            helper.make_node("Reshape", [product, shape], add.output),
        ):
            if new.output[0] not in made:
                nodes.append(new)
                made.add(new.output[0])
        gone.add(add.output[0])
    del graph.node[:], graph.value_info[:]  # the latter would give products their old shapes
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.array(values, np.int64), name) for name, values in sizes.items()
    )


def _name_layers(graph: onnx.GraphProto) -> None:
    """Short names, but none twice: what a layer does a second time is called like another layer."""
    taken = {node.name for node in graph.node if node.op_type not in ("Conv", "Gemm")} | {""}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            short = _OPERATOR.sub(r"\1", node.name)
            names = (short, node.name, node.output[0])
            node.name = next(name for name in names if name not in taken)
            taken.add(node.name)
