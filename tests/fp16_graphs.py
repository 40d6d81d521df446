"""Graphs for the tests of FP16: small float32 ones, cast and run."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporters.onnx_precision.fp16 import Fp16Model, to_fp16

Graph = onnx.ModelProto
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(4, 4)).astype(np.float32)
X = _RNG.normal(size=(3, 4)).astype(np.float32)
HUGE = np.array(W)
HUGE[0, 0] = 70000


def model_of(
    body: str, *, x: str = "float[N, 4] x", y: str = "float[N, 4] y", **weights: Any
) -> Graph:
    """A graph in onnx's text form; `w` and those given are its weights."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> test ({x}) => ({y}) {{ {body} }}'
    )
    for name, array in {"w": W, **weights}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def cast(model: Graph, **options: Any) -> Fp16Model:
    """The model in half precision, after checks that any such model must pass."""
    before = model.SerializeToString()
    made = to_fp16(model, **options)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made.model, full_check=True)
    graph = made.model.graph
    assert graph.input == model.graph.input
    assert graph.output == model.graph.output
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert not {node.input[0] for node in casts} & {node.output[0] for node in casts}
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)
    assert made.casts == len(casts) - sum(node.op_type == "Cast" for node in model.graph.node)
    return made


def run(model: Graph, x: np.ndarray = X) -> np.ndarray:
    """The first output, from ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def run_rounding(model: Graph, x: np.ndarray = X) -> np.ndarray:
    """By onnx's reference, with every half rounded.

    ONNX Runtime's CPU computes in float32 and drops the rounding between most neighbours.
    """
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, {"x": x})[0]


def difference(made: Fp16Model, model: Graph, x: np.ndarray = X) -> float:
    """How far the results are apart at most, as a share of the largest one."""
    wanted = run(model, x)
    results = [run(made.model, x), run_rounding(made.model, x)]
    assert [found.dtype for found in results] == [np.float32] * 2
    return float(max(np.abs(found - wanted).max() for found in results) / np.abs(wanted).max())


def types_of(model: Graph) -> dict[str, int]:
    """Tensor -> element type."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def precisions(made: Fp16Model) -> dict[str, str]:
    """Operator -> the float types of all its nodes' operands, such as "16" or "32"."""
    types = types_of(made.model)
    found: dict[str, set[int]] = {}
    for node in made.model.graph.node:
        at = {types.get(name) for name in (*node.input, *node.output)} & {HALF, FLOAT}
        found.setdefault(node.op_type, set()).update(at)
    return {
        operator: " ".join(text for type_, text in ((HALF, "16"), (FLOAT, "32")) if type_ in at)
        for operator, at in found.items()
    }
