"""What a `.tflite` calls its input and its outputs, and their order: always those of our ONNX."""

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from rfdetr_edge.errors import ArtifactError

_IDENTIFIER = b"TFL3"
_KEY = "serving_default"


def signed(model: bytes, outputs: Sequence[str]) -> bytes:
    """The same model with one signature: `input`, then the outputs of these names in this order.

    Raises ArtifactError for a model with other outputs, by the names of its tensors, or several
    inputs.
    """
    file = schema.ModelT.InitFromPackedBuf(model)
    graph = file.subgraphs[0]
    inputs = [int(index) for index in graph.inputs]
    found = {graph.tensors[index].name.decode(): int(index) for index in graph.outputs}
    if len(inputs) != 1 or sorted(found) != sorted(outputs):
        raise ArtifactError(
            f"the converter gave a model of {len(inputs)} inputs and the outputs "
            f"{', '.join(found)}; wanted are one and {', '.join(outputs)}"
        )
    ordered = {name: found[name] for name in outputs}
    graph.outputs = [*ordered.values()]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = _KEY, 0
    signature.inputs, signature.outputs = _entries({"input": inputs[0]}), _entries(ordered)
    file.signatureDefs = [signature]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(file.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _entries(tensors: Mapping[str, int]) -> list[Any]:
    entries = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        entries.append(entry)
    return entries
