"""The precision of a file is what its graph holds, not what it says."""

import numpy as np
import onnx
import pytest
from int8_graphs import parsed
from onnx import TensorProto, helper, numpy_helper

from exporters.inspection import inspected
from exporters.weights import Inspection
from rfdetr_edge.demo import model_path
from rfdetr_edge.metadata import Precision


def _model(weights: np.ndarray) -> onnx.ModelProto:
    """One product with (4, 4) weights, dequantised where they are int8."""
    nodes, constants, name = [], [numpy_helper.from_array(weights, "w")], "w"
    if weights.dtype == np.int8:
        nodes.append(helper.make_node("DequantizeLinear", ["w", "step"], ["restored"]))
        constants.append(numpy_helper.from_array(np.float32(0.1), "step"))
        name = "restored"
    kind = TensorProto.FLOAT16 if weights.dtype == np.float16 else TensorProto.FLOAT
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"], name="layer"))
    values = [helper.make_tensor_value_info(n, kind, [2, 4]) for n in "xy"]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], constants))


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(np.float32, "fp32"), (np.float16, "fp16"), (np.int8, "int8-weight-only")],
)
def test_precision_is_that_of_the_weights(dtype: type, precision: str) -> None:
    seen = inspected(_model(np.eye(4, dtype=dtype)))
    assert (seen.precision, seen.weights) == (precision, {precision: 16})
    assert not seen.faults


_RESTORED = "w = DequantizeLinear(i, step) "
_ROUNDED = "whole = QuantizeLinear(x, step) "
_DYNAMIC = "whole, unit, zero = DynamicQuantizeLinear(x) "
_SUMS = "sums = MatMulInteger(whole, i, zero) y = Cast<to=1>(sums)"


@pytest.mark.parametrize(
    ("body", "precision"),
    [
        (_RESTORED + "y = MatMul(x, w)", "int8-weight-only"),
        (_RESTORED + _ROUNDED + "d = DequantizeLinear(whole, step) y = MatMul(d, w)", "int8"),
        (_RESTORED + "d = Relu(x) y = MatMul(d, w)", "int8-weight-only"),
        (_RESTORED + _DYNAMIC + "y = MatMul(x, w)", "int8-weight-only"),
        (
            _RESTORED + _DYNAMIC + "d = DequantizeLinear(whole, unit, zero) y = MatMul(d, w)",
            "int8-dynamic",
        ),
        (_DYNAMIC + _SUMS, "int8-dynamic"),
        (_ROUNDED + "sums = MatMulInteger(whole, i) y = Cast<to=1>(sums)", "int8"),
    ],
)
def test_weights_of_8_bits_are_told_apart_by_what_they_meet(body: str, precision: str) -> None:
    model = parsed(
        "(float[2,4] x) => (float[2,4] y)",
        body,
        i=np.eye(4, dtype=np.int8),
        step=np.float32(0.1),
    )
    seen = inspected(model)
    assert (seen.precision, seen.weights) == (precision, {precision: 16})


@pytest.mark.parametrize(
    ("weights", "precision"),
    [
        ({"fp32": 40, "int8": 35, "int8-weight-only": 25}, "int8"),
        ({"fp32": 40, "int8-dynamic": 25, "int8-weight-only": 35}, "int8-weight-only"),
        ({"fp32": 60, "int8-dynamic": 40}, "fp32"),
        ({"fp32": 30, "fp16": 35, "int8": 20, "int8-dynamic": 15}, "fp16"),
        ({}, "fp32"),
    ],
)
def test_bits_come_first_then_what_most_of_their_weights_meet(
    weights: dict[Precision, int], precision: str
) -> None:
    assert Inspection(weights, ()).precision == precision


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
