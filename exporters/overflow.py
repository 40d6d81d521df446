"""Does a graph in half precision leave the range of half, which ends at 65504?

ONNX Runtime computes half in float32 on most CPUs and rounds only what it must, so that an overflow
which a GPU makes does not show in the outputs. It does in every inner value that is asked for.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.activations import activations

# Values asked for in one run, so that those of a large network fit in memory.
_AT_ONCE = 64


def overflows(model: onnx.ModelProto, tensors: Iterable[NDArray[np.float32]]) -> list[str]:
    """The nodes that give NaN or infinity in float16 on these inputs, each (1, 3, H, W)."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    half = {
        value.name
        for value in inferred.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    makers = {name: node.name for node in model.graph.node for name in node.output if name in half}
    names = list(makers)
    found: dict[str, None] = {}
    inputs = list(tensors)
    for start in range(0, len(names), _AT_ONCE):
        for values in activations(model, names[start : start + _AT_ONCE], inputs):
            found.update(
                {makers[name]: None for name, a in values.items() if not np.isfinite(a).all()}
            )
    return list(found)
