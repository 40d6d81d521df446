"""What flows through a graph: runs it with its inner tensors as outputs, image by image."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from rfdetr_edge.backends.onnxrt import OnnxSession

_ERRORS_ONLY = 3


def activations(
    model: onnx.ModelProto, names: Sequence[str], tensors: Iterable[NDArray[np.float32]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """For each input tensor (1, 3, H, W): name -> value of the tensors named.

    A graph of a fixed batch gets that many copies of the image. Graph optimisations are off, since
    they would remove some of the names. Raises BackendError for tensors that do not fit its input.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the order of the graph. The default goes back from the outputs, and would keep every tensor
    # that an output is reduced from until the end.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    running = ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session = OnnxSession(running, "cpu")
    feed = session.inputs[0]
    batch = feed.shape[0] or 1
    for tensor in tensors:
        yield session.run({feed.name: tensor.repeat(batch, axis=0)})
