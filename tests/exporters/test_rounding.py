"""Weights as whole numbers: to the nearest, with one step a channel."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exporters.onnx_precision.rounding import EIGHT_BITS, SEVEN_BITS, rounded

floats = st.floats(-100, 100, width=32)
matrices = arrays(np.float32, st.tuples(*[st.integers(1, 6)] * 2), elements=floats)


@given(
    matrices,
    st.sampled_from([1.0, 1e-38, 1e-43]),
    st.integers(0, 1),
    st.sampled_from([SEVEN_BITS, EIGHT_BITS]),
)
def test_weights_are_rounded_to_the_nearest_of_few_numbers(weights, size, axis, limit):
    weights = weights * np.float32(size)
    numbers, step = rounded(weights, axis, limit)
    assert numbers.dtype == np.int8
    assert step.dtype == np.float32
    assert step.shape == (weights.shape[axis],)
    assert np.abs(numbers.astype(int)).max() <= limit
    for channel, ints, unit in zip(
        np.moveaxis(weights, axis, 0), np.moveaxis(numbers, axis, 0), step, strict=True
    ):
        lost = np.abs(channel.astype(np.float64) - ints * float(unit))
        assert lost.max() <= unit / 2 * 1.001
        # all the numbers there are, for each channel by itself
        assert np.abs(ints).max() == limit or unit == 1.0


@given(matrices, st.floats(1e-3, 10))
def test_no_step_is_smaller_than_asked(weights, least):
    numbers, step = rounded(weights, 1, 63, least)
    np.testing.assert_allclose(step, np.maximum(np.abs(weights).max(axis=0) / 63, least), rtol=1e-6)
    assert (np.abs(weights - numbers * step) <= step / 2 * 1.001).all()
