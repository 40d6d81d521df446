"""How pixels become the input tensor: squash, scale to 0-1, normalise, split into planes.

One implementation for the runtime, the trainer and calibration, in NumPy alone. Knows nothing of
files and colour orders: it takes an RGB array and gives a tensor.

A resize is linear and separable: `rows @ image @ columns`. Both matrices are zero but for a
narrow band, so each is kept as small dense blocks, and each block is one matrix product. That is
fast on one thread, and the two conventions (antialias or not) differ in the weights alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.errors import InputError
from rfdetr_edge.metadata import InputSpec

Float32 = NDArray[np.float32]

# Outputs of an axis that share a block: more waste products with zeros, fewer make too many calls.
# The fastest of 4, 8, 16 and 32 for a 1080p frame with antialias.
_ROWS, _COLUMNS = 8, 16
# Blocks of output rows in one strip. A strip's arrays stay in the cache and in memory the process
# already holds; those of a whole frame cost more in page faults than in arithmetic.
_STRIP = 6
# Multiplications. OpenBLAS gives a larger product to threads, which go on waiting in a loop when it
# is done and take the CPU from the model: on two cores its next run was 4 to 18 % longer.
_ONE_THREAD = 1 << 18


def preprocess(image: NDArray[Any], spec: InputSpec) -> Float32:
    """One image as a tensor (3, H, W), float32, C-contiguous, normalised.

    image: (h, w, 3) RGB, uint8, or float32 or float64 in 0-1; any strides.
    Raises InputError for anything else.
    """
    tensor: Float32 = preprocess_batch([image], spec)[0]
    return tensor


def preprocess_batch(images: Sequence[NDArray[Any]], spec: InputSpec) -> Float32:
    """Images of any sizes as one tensor (N, 3, H, W); each as `preprocess` makes it."""
    batch = np.empty((len(images), 3, *spec.resolution), np.float32)
    for image, tensor in zip(images, batch, strict=True):
        check_image(image)
        _resize_into(tensor, image, spec)
    return batch


def check_image(image: NDArray[Any]) -> None:
    """Raises InputError unless the array is an image as `preprocess` takes it."""
    wanted = "wanted (height, width, 3) RGB of uint8, or of float32 or float64 in 0-1"
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"got an image array of shape {image.shape}; {wanted}")
    if image.dtype == np.uint8:
        return
    if image.dtype not in (np.float32, np.float64):
        raise InputError(
            f"got an image array of {image.dtype}; {wanted}. Convert it first, for 16-bit pixels "
            "by (image / 65535).astype('float32')"
        )
    low, high = image.min(), image.max()
    if np.isnan(low):
        raise InputError(f"got a {image.dtype} image with NaN; {wanted}")
    if low < 0 or high > 1:
        raise InputError(
            f"got a {image.dtype} image with values from {low:g} to {high:g}; {wanted}. "
            "Divide bytes by 255, or pass them as uint8"
        )


@dataclass(frozen=True, slots=True)
class Taps:
    """An axis's resize as weighted sums of neighbours, for code that is no matrix product.

    Output i is the sum of weights[i, k] * source[first[i] + k]. first: (outputs,) int32. weights:
    (outputs, taps) float32, zero where an output has fewer neighbours; all taps are in the source.
    """

    first: NDArray[np.int32]
    weights: Float32


def axis_taps(source: int, target: int, antialias: bool) -> Taps:
    """The resize of an axis from `source` to `target` pixels: `preprocess`'s, but for rounding."""
    outputs: list[tuple[NDArray[np.intp], Float32]] = []
    for span in _spans(target, _ROWS):
        inputs, weights = _weights(span, source, target, antialias)
        outputs += [(inputs[row > 0], row[row > 0]) for row in weights]
    taps = max(int(inputs[-1] - inputs[0]) + 1 for inputs, _ in outputs)
    first = np.array([min(inputs[0], source - taps) for inputs, _ in outputs], np.int32)
    table = np.zeros((target, taps), np.float32)
    for row, start, (inputs, weights) in zip(table, first, outputs, strict=True):
        row[inputs - start] = weights
    return Taps(first, table)


@dataclass(frozen=True, slots=True)
class _Block:
    """The next outputs of one axis: `weights (outputs, inputs) @ used pixels[inputs]`."""

    inputs: slice
    weights: Float32


@dataclass(frozen=True, slots=True)
class _Axis:
    """The resize of one axis. used: the source positions that have any weight, ascending."""

    used: NDArray[np.intp]
    blocks: tuple[_Block, ...]


def _resize_into(tensor: Float32, image: NDArray[Any], spec: InputSpec) -> None:
    rows = _axis(image.shape[0], tensor.shape[1], spec.antialias, _ROWS)
    columns = _axis(image.shape[1], tensor.shape[2], spec.antialias, _COLUMNS)
    # A BGR frame comes as the view frame[..., ::-1]. Copying bytes backwards takes longer than the
    # whole resize, so it stays BGR until the planes are split.
    order = -1 if image.strides[2] < 0 else 1
    image = image[..., ::order]
    samples = None  # all of them
    if len(columns.used) < image.shape[1]:
        samples = (columns.used[:, None] * 3 + np.arange(3)).ravel()
    full = 255.0 if image.dtype == np.uint8 else 1.0
    scale = (1.0 / (full * np.array(spec.std))).astype(np.float32)[:, None, None]
    shift = (np.array(spec.mean) / np.array(spec.std)).astype(np.float32)[:, None, None]

    for first in range(0, len(rows.blocks), _STRIP):
        strip = rows.blocks[first : first + _STRIP]
        target = tensor[:, first * _ROWS : (first + _STRIP) * _ROWS]  # (3, S, W)
        lines = _resize_rows(image, rows.used, strip, samples, target.shape[1])
        planes = lines.reshape(len(lines), -1, 3).transpose(2, 0, 1)[::order]
        scaled = np.multiply(planes, scale, order="C")  # (3, S, used columns)
        np.subtract(_resize_columns(scaled, columns, target.shape[2]), shift, out=target)


def _resize_rows(
    image: NDArray[Any],
    used: NDArray[np.intp],
    strip: Sequence[_Block],
    samples: NDArray[np.intp] | None,
    count: int,
) -> Float32:
    """One strip of `count` output rows, (S, used columns * 3); its columns are not yet resized."""
    width = image.shape[1] * 3 if samples is None else len(samples)
    lines = np.empty((count, width), np.float32)
    for block, top in zip(strip, range(0, count, _ROWS), strict=True):
        pixels = image[used[block.inputs]].reshape(block.weights.shape[1], -1)
        if samples is not None:
            pixels = pixels.take(samples, axis=1)
        _multiply(block.weights, pixels.astype(np.float32), lines[top : top + _ROWS])
    return lines


def _resize_columns(planes: Float32, columns: _Axis, width: int) -> Float32:
    """(3, S, used columns) -> (3, S, width)."""
    stacked = planes.reshape(-1, planes.shape[2])
    resized = np.empty((len(stacked), width), np.float32)
    for block, left in zip(columns.blocks, range(0, width, _COLUMNS), strict=True):
        outputs = resized[:, left : left + _COLUMNS]
        _multiply(stacked[:, block.inputs], block.weights.T, outputs)
    return resized.reshape(*planes.shape[:2], width)


def _multiply(left: Float32, right: Float32, out: Float32) -> None:
    """`left @ right` into `out`, on this thread alone."""
    if right.shape[1] > len(left):
        left, right, out = right.T, left.T, out.T
    step = max(_ONE_THREAD // right.size, 1)
    whole = len(left) // step * step
    if whole:  # all pieces of this size in one call
        pieces = left[:whole].reshape(-1, step, left.shape[1])
        np.matmul(pieces, right, out=out[:whole].reshape(-1, step, right.shape[1]))
    np.matmul(left[whole:], right, out=out[whole:])


@lru_cache(maxsize=32)
def _axis(source: int, target: int, antialias: bool, size: int) -> _Axis:
    """Blocks of `size` outputs that bring an axis from `source` to `target` pixels."""
    parts = [_weights(span, source, target, antialias) for span in _spans(target, size)]
    used = np.unique(np.concatenate([inputs for inputs, _ in parts]))
    blocks = []
    for inputs, weights in parts:
        positions = np.searchsorted(used, inputs)
        first, last = int(positions[0]), int(positions[-1])
        dense = np.zeros((len(weights), last - first + 1), np.float32)
        dense[:, positions - first] = weights
        blocks.append(_Block(slice(first, last + 1), dense))
    return _Axis(used, tuple(blocks))


def _spans(target: int, size: int) -> list[range]:
    """All outputs of an axis, `size` at a time."""
    return [range(start, min(start + size, target)) for start in range(0, target, size)]


def _weights(
    outputs: range, source: int, target: int, antialias: bool
) -> tuple[NDArray[np.intp], Float32]:
    """Source positions (n,) and weights (outputs, n) of neighbouring outputs.

    Half-pixel centres: output i lies at (i + 0.5) * source / target, its neighbours are weighted
    by a triangle of half-width 1, with `antialias` widened to the scale when shrinking and cut at
    the border. Scale and centres are float32, rounded where PyTorch's `interpolate` rounds them:
    the exact ones move the normalised tensor by up to 1e-4.
    """
    scale = np.float32(source) / np.float32(target)
    exact = float(scale) * (np.arange(outputs.start, outputs.stop) + 0.5)
    reach = max(float(scale), 1.0) if antialias else 1.0
    low = max(int(exact[0] - reach) - 1, 0)
    inputs = np.arange(low, min(int(exact[-1] + reach) + 2, source), dtype=np.intp)
    positions = inputs.astype(np.float32)
    if antialias:
        centres = exact.astype(np.float32)
        distance = (positions - centres[:, None]).astype(np.float64) + 0.5
    else:
        centres = np.clip((exact - 0.5).astype(np.float32), 0, source - 1)
        distance = (positions - centres[:, None]).astype(np.float64)
    weights = np.maximum(1.0 - np.abs(distance) / reach, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    positive = weights.any(axis=0)
    return inputs[positive], weights[:, positive].astype(np.float32)
