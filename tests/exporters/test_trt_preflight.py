"""What is seen in a graph before an engine is built of it, and in the engine afterwards."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import save_detector

from exporters.calibration import calibration_set
from exporters.linears import linears
from exporters.onnx_cleanup import cleaned
from exporters.onnx_precision.dynamic import dynamic
from exporters.onnx_precision.fp16 import to_fp16
from exporters.trt.inspector import layer_types
from exporters.trt.preflight import preflight
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.metadata import METADATA_KEY, parse_metadata

_SIGNATURE = "(float[1, 8, 16] x) => (float[1, 8, 4] y)"
_NORM = """
    mean = ReduceMean <axes = [-1]> (x)
    centred = Sub(x, mean)
    squares = {square}
    variance = ReduceMean <axes = [-1]> (squares)
    safe = Add(variance, tiny)
    deviation = Sqrt(safe)
    normal = Div(centred, deviation)
    y = MatMul(normal, w)
"""


def _graph(body: str, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> test {_SIGNATURE} {{ {body} }}'
    )
    constants |= {"w": np.ones((16, 4), np.float32), "tiny": np.float32(1e-6)}
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


def _texts(model: onnx.ModelProto, precision: str, *, errors: bool) -> str:
    found = preflight(model, precision)
    return "\n".join(finding.text for finding in found if finding.is_error == errors)


def test_our_artifacts_are_without_findings() -> None:
    model = onnx.load(model_path())
    assert preflight(model, "fp32") == []
    assert preflight(to_fp16(cleaned(model)).model, "fp16") == []


@pytest.mark.parametrize("square", ["Mul(centred, centred)", "Pow(centred, two)"])
def test_a_layer_norm_in_pieces_is_an_error_in_half_precision_alone(square: str) -> None:
    model = _graph(_NORM.format(square=square), two=np.float32(2))
    assert "1 layer norms are written as many small operators" in _texts(
        model, "fp32", errors=False
    )
    half = to_fp16(model).model
    assert "1 layer norms are written as many small operators" in _texts(half, "fp16", errors=True)


def test_a_square_root_of_something_else_is_no_layer_norm() -> None:
    model = _graph("s = Add(x, tiny) d = Sqrt(s) n = Div(x, d) y = MatMul(n, w)")
    assert preflight(model, "fp32") == []


def test_an_old_opset_is_a_warning() -> None:
    found = preflight(_graph("y = MatMul(x, w)", opset=16), "fp32")
    assert [(finding.is_error, finding.text[:8]) for finding in found] == [(False, "opset 16")]


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (onnx.TensorProto.INT64, [1, 3, 8, 8], "input x is int64; the runtime feeds float32"),
        (onnx.TensorProto.FLOAT, ["n", 3, "h", 8], "height or width of input x is open"),
        (onnx.TensorProto.FLOAT, [1, 3, 8, None], "height or width of input x is open"),
        (onnx.TensorProto.FLOAT, None, "input x says nothing of its shape"),
    ],
)
def test_inputs_that_no_engine_takes_are_named(kind: int, shape: list | None, message: str) -> None:
    model = _graph("y = MatMul(x, w)")
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", kind, shape))
    assert _texts(model, "fp32", errors=True).startswith(message)


def test_more_inputs_than_the_images_are_named() -> None:
    model = _graph("y = MatMul(x, w)")
    more = onnx.helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, [1, 2])
    model.graph.input.append(more)
    found = _texts(model, "fp32", errors=True)
    assert "the graph takes x, sizes; it should take images alone" in found
    assert "input sizes is int64" in found


def test_an_open_batch_and_weights_among_the_inputs_are_no_finding(tmp_path: Path) -> None:
    model = onnx.load(save_detector(tmp_path / "m.onnx", batch=None))
    weights = model.graph.initializer[0]
    shape = [*weights.dims]
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(weights.name, weights.data_type, shape)
    )
    assert preflight(model, "fp32") == []


def test_int8_that_finds_its_scales_as_it_runs_is_an_error() -> None:
    graph = cleaned(onnx.load(model_path()))
    found = _texts(dynamic(graph, linears(graph)), "int8", errors=True)
    assert "TensorRT cannot run int8-dynamic" in found


@pytest.mark.parametrize("zero", [np.uint8(128), np.int8(3)])
def test_int8_around_a_zero_point_is_an_error(zero: np.generic) -> None:
    model = _graph(
        "q = QuantizeLinear(x, tiny, zero) d = DequantizeLinear(q, tiny, zero) "
        "v = DequantizeLinear(k, tiny, none) y = MatMul(d, v)",
        zero=zero,
        none=np.int8(0),
        k=np.ones((16, 4), np.int8),
    )
    found = _texts(model, "int8", errors=True)
    assert found.startswith("it is quantised around zero points")
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.int8), "zero"))
    assert preflight(model, "int8") == []


def test_weights_that_are_nan_are_an_error() -> None:
    model = _graph("y = MatMul(x, v)", v=np.full((16, 4), np.nan, np.float32))
    assert "NaN or infinite" in _texts(model, "fp32", errors=True)


def test_half_precision_that_overflows_on_images_is_an_error() -> None:
    model = onnx.load(model_path())
    half = to_fp16(cleaned(model)).model
    spec = parse_metadata({p.key: p.value for p in model.metadata_props}[METADATA_KEY]).input
    tensors = list(calibration_set(photo_paths()[:1]).tensors(spec))
    assert preflight(half, "fp16", tensors) == []
    [finding] = preflight(half, "fp16", [tensor * 1e6 for tensor in tensors])
    assert finding.is_error
    assert finding.text.startswith("half precision overflows in ")


@pytest.mark.parametrize(
    "output",
    [
        {"Name": "a", "Format/Datatype": "Half"},
        {"Name": "a", "Format/Datatype": "Row major linear FP16 format"},
        {"Name": "a", "DataType": "Half", "Format": "Row major linear FP16 format (kLINEAR)"},
    ],
)
def test_the_inspector_is_understood_in_the_words_of_its_versions(output: dict) -> None:
    text = json.dumps(
        {
            "Layers": [
                {"Name": "x", "Outputs": [output, {"Format/Datatype": "Float"}]},
                {"Name": "y", "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]},
                {"Name": "z", "Outputs": []},
                "only a name",
            ]
        }
    )
    assert layer_types(text) == {"Half": 1}
