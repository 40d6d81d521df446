"""Weights as whole numbers of 8 bits, symmetric around 0, with one step for each output channel."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

EIGHT_BITS = 127
# On x86 without VNNI two products of uint8 and int8 are added in 16 bits, which overflow beyond
# 7-bit weights (ONNX Runtime's documentation on quantisation): files must be right there too.
SEVEN_BITS = 63
# Below it numbers lose their digits, and processors may take them for 0.
SMALLEST = np.finfo(np.float32).tiny


def rounded(
    weights: Float32, out_axis: int, limit: int, least: Float32 | float = 0.0
) -> tuple[NDArray[np.int8], Float32]:
    """Weights as whole numbers of at most `limit`, and the step (out,) that each is worth.

    least: (out,), or one for all; no step is smaller. Where that leaves none, it is 1.
    """
    others = tuple(axis for axis in range(weights.ndim) if axis != out_axis)
    step = np.abs(weights).max(axis=others) / np.float32(limit)
    step = np.maximum(step, least).astype(np.float32)
    step[step < SMALLEST] = 1.0
    return np.rint(weights / np.expand_dims(step, others)).astype(np.int8), step
