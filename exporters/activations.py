"""What flows through a graph: runs it with its inner tensors as outputs, image by image."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

_ERRORS_ONLY = 3


def activations(
    model: onnx.ModelProto, names: Sequence[str], tensors: Iterable[NDArray[np.float32]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """For each input tensor (1, 3, H, W): name -> value of the tensors named.

    A graph of a fixed batch gets that many copies of the image. Graph optimisations are off, since
    they would remove some of the names.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0]
    batch = feed.shape[0] if isinstance(feed.shape[0], int) else 1
    for tensor in tensors:
        values = session.run(list(names), {feed.name: tensor.repeat(batch, axis=0)})
        yield dict(zip(names, values, strict=True))
