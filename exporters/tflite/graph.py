"""The graph of a .tflite: its layers and what they hold, and the activations that it rounds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from exporters.scales import Scale
from rfdetr_edge.associated import model_of

_KINDS = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
_DTYPES: Mapping[int, Any] = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
}
LAYERS = ("FULLY_CONNECTED", "CONV_2D")
"""Operators whose constant weights are lowered."""
_PRODUCTS = (*LAYERS, "DEPTHWISE_CONV_2D", "BATCH_MATMUL")


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """An operator that multiplies activations by constant weights.

    name: that of the tensor it gives. data: the tensor it takes.
    kind: the operator's name. weights: as stored. channels: how many steps 8-bit weights have.
    restored: whether they become float32 before they are used. rounded: whether `data` is 8 bits.
    """

    name: str
    kind: str
    data: str
    weights: NDArray[Any]
    channels: int
    restored: bool
    rounded: bool


def products(content: bytes) -> list[Product]:
    """In the order of the graph, those whose weights are of float32, float16 or int8."""
    model, graph = _opened(content)
    makers = {index: node for node in graph.operators for index in node.outputs}
    found = []
    for node, kind in _nodes(model):
        if kind not in _PRODUCTS:
            continue
        data, index = graph.tensors[node.inputs[0]], node.inputs[1]
        maker = makers.get(index)
        restored = maker is not None and kind_of(model, maker) == "DEQUANTIZE"
        if maker is not None and restored:
            index = maker.inputs[0]
        weights = graph.tensors[index]
        held = model.buffers[weights.buffer].data
        if held is None or len(held) == 0 or weights.type not in _DTYPES:
            continue
        steps = None if weights.quantization is None else weights.quantization.scale
        found.append(
            Product(
                name=graph.tensors[node.outputs[0]].name.decode(),
                kind=kind,
                data=data.name.decode(),
                weights=np.frombuffer(bytes(held), _DTYPES[weights.type]).reshape(weights.shape),
                channels=0 if steps is None else len(steps),
                restored=restored,
                rounded=data.type == schema.TensorType.INT8,
            )
        )
    return found


def scales(content: bytes) -> dict[str, Scale]:
    """Of the activations that the graph rounds to 8 bits, by the name of the float32 tensor."""
    model, graph = _opened(content)
    found = {}
    for node, kind in _nodes(model):
        before, after = graph.tensors[node.inputs[0]], graph.tensors[node.outputs[0]]
        if kind == "QUANTIZE" and before.type == schema.TensorType.FLOAT32:
            limits = np.iinfo(_DTYPES[after.type])
            step, zero = after.quantization.scale[0], after.quantization.zeroPoint[0]
            found[before.name.decode()] = Scale(float(step), int(zero), limits.min, limits.max)
    return found


def count_nodes(content: bytes) -> int:
    """Operators in the graph."""
    return len(_opened(content)[1].operators)


def read_model(artifact: Path) -> bytes:
    """The model's own bytes of a file."""
    return model_of(artifact.read_bytes())


def pack(model: Any) -> bytes:
    """The file of a schema's ModelT."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def kind_of(model: Any, node: Any) -> str:
    """Name of an operator of a schema's ModelT."""
    code = model.operatorCodes[node.opcodeIndex]
    kind: str = _KINDS[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return kind


def unpacked(content: bytes) -> Any:
    """A schema's ModelT, with all numbers in its buffers.

    litert-quantizer leaves those of models from 256 KB on behind the graph, at an offset of the
    file (schema.fbs, table Buffer).
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    for buffer in model.buffers:
        if buffer.offset > 1:
            held = content[buffer.offset : buffer.offset + buffer.size]
            buffer.data, buffer.offset, buffer.size = np.frombuffer(held, np.uint8), 0, 0
    return model


def _opened(content: bytes) -> tuple[Any, Any]:
    model = unpacked(content)
    return model, model.subgraphs[0]


def _nodes(model: Any) -> Iterator[tuple[Any, str]]:
    for node in model.subgraphs[0].operators:
        yield node, kind_of(model, node)
