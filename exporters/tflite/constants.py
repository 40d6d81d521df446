"""Large constants of a .tflite that belong to no layer, such as a position table, as halves.

They are restored before they are used. In `tiny` the position table is a tenth of an INT8 file.
"""

import copy

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from exporters.tflite.graph import kind_of, pack, unpacked

_LARGEST = float(np.finfo(np.float16).max)
# Of numbers: below it a constant is worth no operator of its own.
_LEAST = 10_000
# Of operators that take a constant as weights or bias, which are lowered or left to the layer.
_LAYERS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL")
_DEQUANTIZE_OF_HALVES = 3  # the operator's first version that takes them


def halved_constants(content: bytes) -> bytes:
    """The same model with those in float16, each behind a DEQUANTIZE."""
    model = unpacked(content)
    (graph,) = model.subgraphs
    of_layers = {
        index
        for node in graph.operators
        if kind_of(model, node) in _LAYERS
        for index in node.inputs
    }
    read = {index for node in graph.operators for index in node.inputs}
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = _DEQUANTIZE_OF_HALVES
    restoring = []
    replaced = set()
    for index in sorted(read - of_layers - {-1}):
        tensor = graph.tensors[index]
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None or len(data) < 4 * _LEAST:
            continue
        values = np.frombuffer(bytes(data), np.float32)
        if np.abs(values).max() > _LARGEST:
            continue
        stored = copy.copy(tensor)
        stored.name, stored.type = tensor.name + b"/half", schema.TensorType.FLOAT16
        stored.buffer = len(model.buffers)
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = values.astype(np.float16).view(np.uint8)
        replaced.add(tensor.buffer)
        tensor.buffer = 0  # the empty one: now it is computed
        node = schema.OperatorT()
        node.opcodeIndex = len(model.operatorCodes)
        node.inputs, node.outputs = [len(graph.tensors)], [index]
        graph.tensors.append(stored)
        restoring.append(node)
    if not restoring:
        return content
    model.operatorCodes.append(code)
    graph.operators = [*restoring, *graph.operators]
    for number in replaced - {tensor.buffer for tensor in graph.tensors}:  # no other tensor's
        model.buffers[number].data = None
    return pack(model)
