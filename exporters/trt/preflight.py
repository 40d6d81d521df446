"""What an ONNX file should not hold when an engine is to be built of it, seen before TensorRT is.

Errors would end in an engine that cannot be built or fed, or that gives wrong results; a warning
names what has gone wrong elsewhere.
"""

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.inspection import inspected
from rfdetr_edge.metadata import Precision, Uncalibrated

_FLOAT = onnx.TensorProto.FLOAT
# The first opset with LayerNormalization.
_WHOLE_NORMS = 17


@dataclass(frozen=True, slots=True)
class Finding:
    """text: one line. is_error: no engine is to be built."""

    text: str
    is_error: bool


def preflight(
    model: onnx.ModelProto, precision: Precision, tensors: Iterable[NDArray[np.float32]] = ()
) -> list[Finding]:
    """Looks at a graph that is to become an engine of this precision, errors first.

    tensors: images, each (1, 3, H, W), on which a graph in half precision is run to see whether it
        overflows; none leaves that out.
    Raises BackendError for tensors that do not fit the graph's input.
    """
    errors = [*_inputs(model), *_precision(model, precision)]
    warnings: list[str] = []
    norms = _decomposed_norms(model)
    if norms:
        text = (
            f"{norms} layer norms are written as many small operators, whose squares overflow in "
            f"half precision; export with opset {_WHOLE_NORMS} or newer"
        )
        (errors if precision == "fp16" else warnings).append(text)
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    if opset < _WHOLE_NORMS:
        warnings.append(
            f"opset {opset} has no layer norm of its own; export with {_WHOLE_NORMS} or newer"
        )
    shown = list(tensors) if precision == "fp16" and not errors else []
    if shown and (nodes := _overflows(model, shown)):
        errors.append(
            f"half precision overflows in {len(nodes)} nodes, first in {nodes[0]}; make the "
            "artifact again with --precision fp16 and --images like those that it will see"
        )
    return [
        *(Finding(text, is_error=True) for text in errors),
        *(Finding(text, is_error=False) for text in warnings),
    ]


def _overflows(model: onnx.ModelProto, tensors: Iterable[NDArray[np.float32]]) -> list[str]:
    """Imported when it is wanted: it takes ONNX Runtime, which a device need not have."""
    found: list[str] = importlib.import_module("exporters.onnx_precision.overflow").overflows(
        model, tensors
    )
    return found


def _inputs(model: onnx.ModelProto) -> Iterator[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "nothing"
        yield f"the graph takes {names}; it should take images alone"
    for value in inputs:
        kind = value.type.tensor_type.elem_type
        if kind != _FLOAT:
            name = onnx.TensorProto.DataType.Name(kind).lower()
            yield f"input {value.name} is {name}; the runtime feeds float32"
        sizes = value.type.tensor_type.shape.dim
        if not sizes:
            yield f"input {value.name} says nothing of its shape; export it again"
        if len(sizes) == 4 and not all(size.dim_value for size in sizes[1:]):
            yield (
                f"height or width of input {value.name} is open; export it for one --shape (the "
                "batch alone may be open)"
            )


def _precision(model: onnx.ModelProto, wanted: Precision) -> Iterator[str]:
    seen = inspected(model)
    yield from seen.faults
    if seen.precision in get_args(Uncalibrated):
        yield f"TensorRT cannot run {seen.precision}; make it int8, with --calibration DIR"
    elif seen.precision != wanted:
        yield f"most of its weights are {seen.precision}, not {wanted}"
    if _zero_points(model):
        yield (
            "it is quantised around zero points, as CPUs have it, and TensorRT only around 0; make "
            "it again with --target tensorrt"
        )


def _zero_points(model: onnx.ModelProto) -> bool:
    """Whether something is rounded to uint8, or around another number than 0."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    zeros = {
        node.input[2]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and len(node.input) > 2
    }
    return any(
        constants[name].data_type == onnx.TensorProto.UINT8
        or onnx.numpy_helper.to_array(constants[name]).any()
        for name in zeros
        if name in constants
    )


def _decomposed_norms(model: onnx.ModelProto) -> int:
    """How often a square root is taken of a mean of squares and a small number."""
    makers = {name: node for node in model.graph.node for name in node.output}

    def made_by(node: onnx.NodeProto, *kinds: str) -> Iterator[onnx.NodeProto]:
        for name in node.input:
            if name in makers and makers[name].op_type in kinds:
                yield makers[name]

    return sum(
        any(
            True
            for added in made_by(root, "Add")
            for mean in made_by(added, "ReduceMean")
            for _ in made_by(mean, "Pow", "Mul")
        )
        for root in model.graph.node
        if root.op_type == "Sqrt"
    )
