"""INT8 weights alone: restored before they are used, and nothing else changes."""

import numpy as np
import pytest
from int8_graphs import (
    constants_of,
    embedded,
    normal,
    open_tiny,
    optimised,
    parsed,
    photos,
    run,
    tiny,
)

from exporters.linears import linears
from exporters.onnx_precision.rounding import EIGHT_BITS, rounded
from exporters.onnx_precision.weight_only import weight_only


def _restored(weights: np.ndarray, out_axis: int) -> np.ndarray:
    """What is left of weights (out along out_axis), by hand."""
    channels = np.moveaxis(weights, out_axis, 0).reshape(weights.shape[out_axis], -1)
    step = np.abs(channels).max(axis=1) / np.float32(127)
    step[step == 0] = 1
    rows = np.rint(channels / step[:, None]) * step[:, None]
    shape = np.moveaxis(weights, out_axis, 0).shape
    return np.moveaxis(rows.reshape(shape), 0, out_axis).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_computes_in_float_with_what_8_bits_keep_of_its_weights(bias: bool):
    # a channel of each size, one of them zero
    weights = normal(6, 4) * np.array([1e-3, 1, 1e3, 0], np.float32)
    constants = {"w": weights, "b": normal(4, seed=1)} if bias else {"w": weights}
    text = f"y = Gemm({', '.join(['x', *constants])})"
    model = parsed("(float[5,6] x) => (float[5,4] y)", text, **constants)
    found, data = weight_only(model, linears(model)), normal(5, 6, seed=2)
    wanted = data @ _restored(weights, 1) + constants.get("b", 0)
    for plainly in (True, False):
        np.testing.assert_allclose(run(found, data, plainly=plainly)["y"], wanted, rtol=1e-5)
    assert not np.allclose(data @ weights, data @ _restored(weights, 1), rtol=1e-5)


def test_a_convolution_too():
    weights, data = normal(4, 3, 2, 2), normal(1, 3, 5, 5, seed=1)
    weights[2] *= 100
    text = "y = Conv<strides=[2,2],pads=[1,0,0,1]>(x, w)"
    signature = "(float[1,3,5,5] x) => (float[1,4,3,3] y)"
    model = parsed(signature, text, w=weights)
    wanted = run(parsed(signature, text, w=_restored(weights, 0)), data)["y"]
    found = run(weight_only(model, linears(model)), data)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_every_layer_has_its_own_weights_of_8_bits_and_one_step_a_channel():
    layers, model = linears(tiny()), weight_only(tiny(), linears(tiny()))
    originals, constants = constants_of(tiny()), constants_of(model)
    axes = {
        node.input[0]: node.attribute[0].i
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    largest = 0
    for layer in layers:
        numbers, step, zero = (
            constants[f"{layer.weight}/{part}"] for part in ("whole", "step", "zero")
        )
        assert axes[f"{layer.weight}/whole"] == 0
        whole, unit = rounded(originals[layer.weight], layer.out_axis, EIGHT_BITS)
        np.testing.assert_array_equal(numbers, whole.T if layer.kind == "Gemm" else whole)
        np.testing.assert_array_equal(step, unit)
        assert not zero.any()
        assert layer.weight not in constants
        largest = max(largest, np.abs(numbers.astype(int)).max())
        if layer.bias is not None:
            np.testing.assert_array_equal(constants[layer.bias], originals[layer.bias])
    assert largest == EIGHT_BITS
    assert model.metadata_props == tiny().metadata_props
    assert model.ByteSize() < 0.30 * embedded().ByteSize()


def test_layers_that_are_not_chosen_stay_as_they_are():
    before = tiny().SerializeToString(deterministic=True)
    chosen = [layer for layer in linears(tiny()) if layer.block == "/model/encoder/blocks.3"]
    found = weight_only(tiny(), chosen)
    assert tiny().SerializeToString(deterministic=True) == before
    assert weight_only(tiny(), []) == tiny()
    names = {layer.name for layer in chosen}
    assert len(names) == 6
    nodes = [node for node in found.graph.node if node.op_type != "DequantizeLinear"]
    for old, new in zip(tiny().graph.node, nodes, strict=True):
        assert (old.name in names) != (old == new)


@pytest.mark.parametrize("graph", [tiny, open_tiny])
def test_onnx_runtime_leaves_activations_in_float(graph):
    model = weight_only(graph(), linears(graph()))
    kinds, before = optimised(model), optimised(graph())
    assert (kinds["Gemm"], kinds["Conv"]) == (before["Gemm"], before["Conv"]) != (0, 0)
    assert kinds["DequantizeLinear"] == len(linears(graph()))
    assert kinds["MatMulNBits"] == 0


def test_detections_hardly_move():
    data = photos(tiny())[:1]
    wanted, found = run(tiny(), data), run(weight_only(tiny(), linears(tiny())), data)
    scores = [1 / (1 + np.exp(-one["labels"].max(axis=(0, 2)))) for one in (wanted, found)]
    # by rank: two queries next to each other may change places
    np.testing.assert_allclose(np.sort(scores[1]), np.sort(scores[0]), atol=0.02)
