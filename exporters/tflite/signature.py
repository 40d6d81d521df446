"""What a `.tflite` says of its tensors, whatever its converter did: as our ONNX artifacts do.

The names of the input and the outputs, their order, and that no size is open.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from exporters.tflite.aliases import unshare
from exporters.tflite.graph import pack, unpacked
from rfdetr_edge.errors import ArtifactError

_KEY = "serving_default"


def signed(model: bytes, outputs: Sequence[str]) -> bytes:
    """The same model with one signature: `input`, then the outputs of these names in this order.

    All its sizes are fixed, as they must be. Raises ArtifactError for a model with other outputs,
    by its own signature or the names of the tensors, or several inputs.
    """
    file = unpacked(model)
    graph = file.subgraphs[0]
    inputs = [int(index) for index in graph.inputs]
    found = {graph.tensors[index].name.decode(): int(index) for index in graph.outputs}
    for given in file.signatureDefs or ():
        found |= {entry.name.decode(): entry.tensorIndex for entry in given.outputs}
    known = set(outputs) <= set(found) and len(graph.outputs) == len(outputs)
    if len(inputs) != 1 or not known:
        raise ArtifactError(
            f"the converter gave a model of {len(inputs)} inputs and the outputs "
            f"{', '.join(found)}; wanted are one and {', '.join(outputs)}"
        )
    ordered = {name: found[name] for name in outputs}
    graph.outputs = [*ordered.values()]
    for tensor in graph.tensors:  # onnx2tf calls sizes open that it knows, after a Split
        tensor.shapeSignature = None
    unshare(file)
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = _KEY, 0
    signature.inputs, signature.outputs = _entries({"input": inputs[0]}), _entries(ordered)
    file.signatureDefs = [signature]
    return pack(file)


def _entries(tensors: Mapping[str, int]) -> list[Any]:
    entries = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        entries.append(entry)
    return entries
