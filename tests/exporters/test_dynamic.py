"""Dynamic INT8: products in integers, the scales of activations from the activations themselves."""

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from int8_graphs import constants_of, embedded, normal, open_tiny, optimised, parsed, run, tiny

from exporters.linears import linears
from exporters.onnx_precision.dynamic import dynamic
from exporters.onnx_precision.rounding import SEVEN_BITS, rounded

_INT16 = 2**15 - 1


def _whole(model: onnx.ModelProto) -> onnx.ModelProto:
    return dynamic(model, linears(model))


def _gemm(weights: np.ndarray, bias: np.ndarray | None, tokens: int) -> onnx.ModelProto:
    inside, outside = weights.shape
    constants = {"w": weights} if bias is None else {"w": weights, "b": bias}
    return parsed(
        f"(float[{tokens},{inside}] x) => (float[{tokens},{outside}] y)",
        f"y = Gemm({', '.join(['x', *constants])})",
        **constants,
    )


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_layer_gives_what_its_rounded_numbers_give_by_hand(seed: int, biased: bool):
    rng = np.random.default_rng(seed)
    tokens, inside, outside = (int(size) for size in rng.integers(1, 9, 3))
    # channels of any size, one of them zero now and then
    weights = rng.normal(size=(inside, outside)) * 10 ** rng.uniform(-3, 3, outside)
    weights[:, 0] *= rng.integers(2)
    bias = rng.normal(size=outside).astype(np.float32) if biased else None
    data = rng.normal(rng.normal(), 1, (tokens, inside)) * 10 ** rng.uniform(-2, 2)
    weights, data = weights.astype(np.float32), data.astype(np.float32)

    low, high = min(data.min(), 0), max(data.max(), 0)
    step = (high - low) / 255
    places = np.append(data / step, -low / step)
    assume((np.abs(places % 1 - 0.5) > 1e-3).all())  # where rounding hangs on the last digit
    zero = np.rint(-low / step)
    numbers = np.clip(np.rint(data / step) + zero, 0, 255) - zero
    steps = np.abs(weights).max(axis=0) / 63
    steps[steps == 0] = 1
    wanted = (numbers @ np.rint(weights / steps)) * (step * steps)
    if bias is not None:
        wanted += bias

    found = _whole(_gemm(weights, bias, tokens))
    for plainly in (True, False):
        sums = run(found, data, plainly=plainly)["y"]
        np.testing.assert_allclose(sums, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_activations_of_zeros_leave_the_bias():
    model = _whole(_gemm(normal(8, 3), normal(3), 4))
    for plainly in (True, False):
        found = run(model, np.zeros((4, 8), np.float32), plainly=plainly)["y"]
        np.testing.assert_array_equal(found, np.tile(normal(3), (4, 1)))


def test_largest_values_times_largest_weights_stay_within_16_bits():
    assert 2 * np.iinfo(np.uint8).max * SEVEN_BITS <= _INT16
    weights = np.stack([np.ones(64), -np.ones(64)], axis=1).astype(np.float32)
    sums = run(_whole(_gemm(weights, None, 1)), np.ones((1, 64), np.float32))["y"]
    np.testing.assert_allclose(sums, [[64, -64]], rtol=1e-3)


def test_layers_that_read_the_same_share_its_rounding():
    model = parsed(
        "(float[5,8] x) => (float[5,3] a, float[5,2] b, float[5,3] d)",
        "a = Gemm(x, v)  b = Gemm(x, w)  c = Relu(a)  d = Gemm(c, u)",
        v=normal(8, 3),
        w=normal(8, 2, seed=1),
        u=normal(3, 3, seed=2),
    )
    found, data = _whole(model), normal(5, 8, seed=3)
    kinds = Counter(node.op_type for node in found.graph.node)
    assert (kinds["DynamicQuantizeLinear"], kinds["MatMulInteger"]) == (2, 3)
    wanted, sums = run(model, data), run(found, data)
    for name in "abd":
        np.testing.assert_allclose(sums[name], wanted[name], atol=0.15)


def test_convolutions_have_weights_of_8_bits_alone():
    model = parsed(
        "(float[1,3,6,6] x) => (float[1,4,6,6] y)", "y = Conv(x, w)", w=normal(4, 3, 1, 1)
    )
    kinds = Counter(node.op_type for node in _whole(model).graph.node)
    assert kinds == {"DequantizeLinear": 1, "Conv": 1}


def test_weights_have_7_bits_and_one_step_a_channel():
    model = _whole(tiny())
    originals, constants = constants_of(tiny()), constants_of(model)
    largest = 0
    for layer in linears(tiny()):
        if layer.kind == "Conv":
            continue
        numbers, steps = (constants[f"{layer.weight}/{part}"] for part in ("whole", "step"))
        whole, unit = rounded(originals[layer.weight], 1, SEVEN_BITS)
        np.testing.assert_array_equal(numbers, whole)
        np.testing.assert_array_equal(steps, unit)
        assert layer.weight not in constants
        largest = max(largest, np.abs(numbers.astype(int)).max())
    assert largest == SEVEN_BITS
    assert model.metadata_props == tiny().metadata_props
    assert model.ByteSize() < 0.30 * embedded().ByteSize()


def test_layers_that_are_not_chosen_stay_as_they_are():
    before = tiny().SerializeToString(deterministic=True)
    chosen = [layer for layer in linears(tiny()) if layer.block == "/model/encoder/blocks.3"]
    found = dynamic(tiny(), chosen)
    assert tiny().SerializeToString(deterministic=True) == before
    assert dynamic(tiny(), []) == tiny()
    gone = {layer.name for layer in chosen}
    kept = [node for node in tiny().graph.node if node.name not in gone]
    assert len(kept) == len(tiny().graph.node) - 6
    same = {node.output[0]: node for node in found.graph.node}
    assert all(same[node.output[0]] == node for node in kept)


@pytest.mark.parametrize(("graph", "layers"), [(tiny, 64), (open_tiny, 65)])
def test_onnx_runtime_makes_one_node_of_every_linear_layer(graph, layers: int):
    kinds = optimised(_whole(graph()))
    assert kinds["DynamicQuantizeMatMul"] + kinds["MatMulIntegerToFloat"] == layers
    assert kinds["MatMulIntegerToFloat"] > kinds["DynamicQuantizeLinear"] > 0
    assert kinds["MatMulInteger"] == kinds["Gemm"] == 0


def test_an_open_batch_stays_open():
    found = run(_whole(open_tiny()), normal(3, 3, 160, 160))
    assert found["labels"].shape == (3, 60, 4)
