"""Graphs for the tests of INT8: the embedded model, an export with an open batch, small ones."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from checkpoints import save_filled
from onnx import numpy_helper

from exporters.onnx_cleanup import cleaned
from exporters.onnx_export import OnnxOptions, export_onnx
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.images import load_image
from rfdetr_edge.metadata import METADATA_KEY, InputSpec, parse_metadata
from rfdetr_edge.preprocess import preprocess_batch
from trainer.checkpoint import load_checkpoint

_ERRORS_ONLY = 3
Graph = onnx.ModelProto


@cache
def embedded() -> Graph:
    """The embedded model as it is; not to be changed, as all that this file keeps."""
    return onnx.load(model_path())


@cache
def tiny() -> Graph:
    """The same, cleaned."""
    return cleaned(embedded())


@cache
def open_batch() -> Graph:
    """A raw export of `tiny` with an open batch, 160x160, every weight from its name."""
    with tempfile.TemporaryDirectory() as folder:
        weights, path = Path(folder) / "tiny.pth", Path(folder) / "tiny.onnx"
        checkpoint = load_checkpoint(save_filled(weights, "tiny", 4, None))
        options = OnnxOptions(shape=(160, 160), batch="dynamic", raw=True)
        export_onnx(checkpoint, path, options, images=None)
        return onnx.load(path)


@cache
def open_tiny() -> Graph:
    """The same, cleaned."""
    return cleaned(open_batch())


def input_spec(model: Graph) -> InputSpec:
    """What an export says of its input."""
    props = {entry.key: entry.value for entry in model.metadata_props}
    return parse_metadata(props[METADATA_KEY]).input


def photos(model: Graph) -> np.ndarray:
    """The three embedded photos as an export takes them, (3, 3, H, W)."""
    images = [load_image(path, upright=False) for path in photo_paths()]
    return preprocess_batch(images, input_spec(model))


def parsed(signature: str, body: str, **constants: np.ndarray) -> Graph:
    """A graph in ONNX's text form, `(inputs) => (outputs)` and nodes, named by their output."""
    text = f'<ir_version: 8, opset_import: ["": 17]> test {signature} {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 numbers around 0."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(model: Graph, *tensors: np.ndarray, plainly: bool = False) -> dict[str, np.ndarray]:
    """Outputs of a graph by name, from ONNX Runtime; plainly: node by node as written."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if plainly:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feeds = {
        value.name: tensor for value, tensor in zip(session.get_inputs(), tensors, strict=True)
    }
    return dict(zip(names, session.run(names, feeds), strict=True))


def optimised(model: Graph) -> Counter[str]:
    """What ONNX Runtime makes of a graph, by the kind of node, on any processor."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(path).graph.node)


def constants_of(model: Graph) -> dict[str, np.ndarray]:
    """The constants of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def multiplied(model: Graph, factors: Mapping[str, np.ndarray]) -> Graph:
    """A copy whose constants of these names are multiplied."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in factors:
            array = (numpy_helper.to_array(tensor) * factors[tensor.name]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy
