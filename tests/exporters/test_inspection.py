"""The precision of a file is what its graph holds, not what it says."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.inspection import inspected
from rfdetr_edge.demo import model_path


def _model(weights: np.ndarray, *, rounded_data: bool = False) -> onnx.ModelProto:
    """One product with (4, 4) weights, dequantised where they are int8."""
    nodes, constants, name, data = [], [numpy_helper.from_array(weights, "w")], "w", "x"
    scale = numpy_helper.from_array(np.float32(0.1), "step")
    if weights.dtype == np.int8:
        nodes.append(helper.make_node("DequantizeLinear", ["w", "step"], ["restored"]))
        constants.append(scale)
        name = "restored"
    if rounded_data:
        nodes.append(helper.make_node("QuantizeLinear", ["x", "step"], ["whole"]))
        nodes.append(helper.make_node("DequantizeLinear", ["whole", "step"], ["data"]))
        data = "data"
    kind = TensorProto.FLOAT16 if weights.dtype == np.float16 else TensorProto.FLOAT
    nodes.append(helper.make_node("MatMul", [data, name], ["y"], name="layer"))
    values = [helper.make_tensor_value_info(n, kind, [2, 4]) for n in "xy"]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], constants))


@pytest.mark.parametrize(
    ("dtype", "precision"), [(np.float32, "fp32"), (np.float16, "fp16"), (np.int8, "int8")]
)
def test_precision_is_that_of_the_weights(dtype: type, precision: str) -> None:
    seen = inspected(_model(np.eye(4, dtype=dtype)))
    assert (seen.precision, seen.weights) == (precision, {precision: 16})
    assert not seen.faults


def test_int8_weights_alone_are_no_integer_arithmetic() -> None:
    assert inspected(_model(np.eye(4, dtype=np.int8))).integer_inputs == 0
    assert inspected(_model(np.eye(4, dtype=np.int8), rounded_data=True)).integer_inputs == 1


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        (np.zeros((4, 4), np.float32), "the weights of layer are all zero"),
        (np.full((4, 4), np.nan, np.float32), "the weights of layer are NaN or infinite"),
        (np.full((4, 4), np.inf, np.float16), "the weights of layer are NaN or infinite"),
        (np.zeros((4, 4), np.int8), "the weights of layer are all zero"),
    ],
)
def test_weights_that_no_network_has_are_faults(weights: np.ndarray, fault: str) -> None:
    assert inspected(_model(weights)).faults == (fault,)


def test_the_embedded_model_is_sound_float32() -> None:
    seen = inspected(onnx.load(model_path()))
    assert seen.precision == "fp32"
    assert set(seen.weights) == {"fp32"}
    assert not seen.faults
