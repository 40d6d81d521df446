"""An FP32 graph as converters to TFLite take it best: the same function in other operators.

Linear layers become products of two matrices, which TFLite knows as FULLY_CONNECTED; sampling a
matrix product; no tensor has a rank above 4 where there is a way; and places are int32, of which
TFLite's operators are made. All of it is standard ONNX.
"""

import numpy as np
import onnx

from exporters.onnx_cleanup import cleaned
from exporters.rewriting import Writer
from exporters.tflite.low_rank import LowRank
from exporters.tflite.static_graph import StaticGraph, reshaped, rewritten
from exporters.tflite.tent_sampling import tent_sampling
from rfdetr_edge.errors import ArtifactError


def tflite_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of one image; metadata, inputs and outputs stay as they are.

    Raises ArtifactError for a graph of another number of images, or of any number.
    """
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if batch.dim_value != 1:
        takes = f"{batch.dim_value} images" if batch.dim_value else "any number of images"
        raise ArtifactError(
            f"a .tflite takes one image a run, this artifact {takes}; export its checkpoint again "
            "with --batch 1"
        )
    return rewritten(cleaned(model), tent_sampling, _picked_rows, _linear, LowRank())


def _picked_rows(writer: Writer, graph: StaticGraph, node: onnx.NodeProto) -> bool:
    """Rewrites GatherElements that picks whole rows of (1, cells, C), as a Gather by int32."""
    if node.op_type != "GatherElements" or graph.shape(node.input[0])[0] != 1:
        return False
    spread = graph.maker(node.input[1], "Expand")
    rows = (1, graph.shape(node.output[0])[1])
    while spread is not None:
        places = spread.input[0]
        if graph.shape(places) == rows:
            break
        spread = graph.maker(places, "Unsqueeze", "Reshape")
    if spread is None:
        return False
    name = node.output[0]
    flat = writer.constant(f"{name}/flat", np.array([-1], np.int64))
    writer.node("Cast", [places], [f"{name}/places"], to=onnx.TensorProto.INT32)
    writer.node("Reshape", [f"{name}/places", flat], [f"{name}/rows"])
    writer.node("Gather", [node.input[0], f"{name}/rows"], [name], axis=1)
    return True


def _linear(writer: Writer, graph: StaticGraph, node: onnx.NodeProto) -> bool:
    """Rewrites products with a constant matrix as Gemm; those with a bias are so already."""
    if node.op_type != "MatMul":
        return False
    weights = graph.constant(node.input[1])
    if weights is None or weights.ndim != 2:
        return False
    name, data = node.output[0], node.input[0]
    rows = reshaped(writer, data, (-1, len(weights)), f"{name}/rows")
    writer.node("Gemm", [rows, node.input[1]], [f"{name}/product"], name=node.name)
    reshaped(writer, f"{name}/product", graph.shape(name), name)
    return True
