"""What is seen of a tensor during calibration, and the range and scale that follow from it.

An observer sees the values of one tensor, image by image, keeps a bounded summary of them, and
gives the range to quantise. In NumPy alone: knows nothing of ONNX, of images, or of which tensors
are worth quantising.

The histogram counts bfloat16 numbers. The upper half of a float32 is its sign, its exponent and 7
bits of its mantissa, so a bin is at most 1/128 of its values wide, however far outliers lie from
the rest. Its bins never move, which is why the order of images cannot matter.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.errors import ArtifactError, InputError

Kind = Literal["minmax", "percentile", "mse"]

_KEYS = 1 << 16  # what 16 bits can say: a sign, 8 bits of exponent, 7 of mantissa
# Values counted at once: fewer spend the time on adding up counts, more on fetching memory.
_CHUNK = 1 << 18
# Mse looks among halves of the extremes, each side by itself, then around the best in ever smaller
# steps. It is no descent from the extremes alone, because there the error can rise at first: where
# a step of the scale is wider than nearly all values, a narrower range only clips.
_HALVINGS = range(11)
_STEPS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)  # in octaves; the last moves a bound by 2 %


class Observer(Protocol):
    """Sees the values of one tensor and gives the range to quantise."""

    def observe(self, values: NDArray[Any]) -> None:
        """Takes in floating-point values of any shape, none included.

        Raises ArtifactError for NaN and infinity, and then has taken in nothing.
        """
        ...

    def range(self, symmetric: bool) -> tuple[float, float]:
        """(low, high) with low <= 0 <= high; symmetric makes low = -high.

        Zero is always inside, since padding and the zeros of ReLU have to stay exact.
        Raises ArtifactError when not one value was seen.
        """
        ...


def observer(kind: Kind, name: str) -> Observer:
    """An observer that has seen nothing yet. name: of the tensor, for its errors."""
    kinds: Mapping[Kind, Callable[[str], Observer]]
    kinds = {"minmax": MinMax, "percentile": Percentile, "mse": Mse}
    return kinds[kind](name)


class MinMax:
    """The smallest and the largest value; exact, in any order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._extremes: tuple[float, float] | None = None

    def observe(self, values: NDArray[Any]) -> None:
        """See `Observer`."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN is both the smallest and the largest
            raise _not_finite(self._name)
        seen = self._extremes or (low, high)
        self._extremes = min(low, seen[0]), max(high, seen[1])

    def range(self, symmetric: bool) -> tuple[float, float]:
        """See `Observer`."""
        if self._extremes is None:
            raise ArtifactError(
                f"tensor {self._name!r} held no value on any calibration image, so it has no range "
                "to quantise; leave it in float"
            )
        return _around_zero(*self._extremes, symmetric)


class Percentile:
    """The values between two percentiles: `percent` % of all lie below high, as many above low.

    A bound is an edge of the histogram, so it is at most 1/128 wider than the exact one, never
    narrower, and never beyond the extremes.
    Raises InputError for a percent that is not above 50, or is above 100.
    """

    def __init__(self, name: str, percent: float = 99.99) -> None:
        if not 50 < percent <= 100:
            raise InputError(f"the percentile must be above 50 and at most 100, not {percent:g}")
        self._percent = percent
        self._histogram = _Histogram(name)

    def observe(self, values: NDArray[Any]) -> None:
        """See `Observer`."""
        self._histogram.observe(values)

    def range(self, symmetric: bool) -> tuple[float, float]:
        """See `Observer`."""
        low, high = self._histogram.extremes.range(symmetric=False)
        edges, counts = self._histogram.bins()
        dropped = counts.sum() * (100 - self._percent) / 100  # of each tail, at most
        lowest = np.searchsorted(np.cumsum(counts), dropped, side="right")
        highest = len(counts) - 1 - np.searchsorted(np.cumsum(counts[::-1]), dropped, side="right")
        low = max(low, float(edges[0, lowest]))
        high = min(high, float(edges[1, highest]))
        return _around_zero(low, high, symmetric)


class Mse:
    """The range with the smallest squared error of what `quantization` makes of it.

    Measured on the histogram, whose values are taken to be spread evenly within a bin. Never worse
    there than the extremes; found to within a few per cent of the smallest error.
    """

    def __init__(self, name: str) -> None:
        self._histogram = _Histogram(name)

    def observe(self, values: NDArray[Any]) -> None:
        """See `Observer`."""
        self._histogram.observe(values)

    def range(self, symmetric: bool) -> tuple[float, float]:
        """See `Observer`. Takes some 30 ms."""
        widest = self._histogram.extremes.range(symmetric)
        bins = self._histogram.bins()

        def bounds(shrink: tuple[float, float]) -> tuple[float, float]:
            return widest[0] * 2.0 ** -max(shrink[0], 0), widest[1] * 2.0 ** -max(shrink[1], 0)

        @cache  # a side that is 0 stays 0, however far it is shrunk
        def error(low: float, high: float) -> float:
            return _squared_error(bins, low, high, symmetric)

        best = (0.0, 0.0)  # octaves by which low and high are shrunk
        for moves in (_HALVINGS, *((0.0, step, -step) for step in _STEPS)):
            pairs = [(a, b) for a in moves for b in moves if a == b or not symmetric]
            near = [(best[0] + a, best[1] + b) for a, b in pairs]
            best = min(near, key=lambda shrink: error(*bounds(shrink)))  # of equals the first
        return bounds(best)


class ChannelMean:
    """The mean of each channel, the last axis, over everything else; for correcting biases."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._sums: NDArray[np.float64] = np.zeros(1)

    def observe(self, values: NDArray[Any]) -> None:
        """Takes in (..., C) values. Raises ArtifactError for NaN and infinity."""
        rows = values.reshape(-1, values.shape[-1])
        with np.errstate(invalid="ignore"):  # inf - inf
            sums = rows.sum(axis=0, dtype=np.float64)
        if not np.isfinite(sums).all():
            raise _not_finite(self._name)
        self._sums = self._sums + sums
        self._count += len(rows)

    def mean(self) -> NDArray[np.float64]:
        """(C,). Raises ArtifactError when not one value was seen."""
        if not self._count:
            raise ArtifactError(f"tensor {self._name!r} held no value on any calibration image")
        return self._sums / self._count


class _Bins(NamedTuple):
    """Occupied bins in ascending order.

    edges: (2, n) float64, where each begins and ends; counts: (n,) int64, of the values in it.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


class _Histogram:
    """Counts by bfloat16 number, and the exact extremes.

    Only occupied bins are kept: some 3,000 of an activation (50 KB), at most 65,280 (1 MB).
    """

    def __init__(self, name: str) -> None:
        self.extremes = MinMax(name)
        self._keys = np.zeros(0, np.intp)
        self._counts = np.zeros(0, np.int64)

    def observe(self, values: NDArray[Any]) -> None:
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        self.extremes.observe(flat)  # first, since it is the one that refuses
        totals = np.zeros(_KEYS, np.int64)
        totals[self._keys] = self._counts
        for start in range(0, len(flat), _CHUNK):
            keys = flat[start : start + _CHUNK].view(np.uint32) >> 16
            totals += np.bincount(keys.astype(np.intp), minlength=_KEYS)
        self._keys = np.flatnonzero(totals > 0)
        self._counts = totals[self._keys]

    def bins(self) -> _Bins:
        near, far = (_value(self._keys + step) for step in (0, 1))  # near 0, away from 0
        edges = np.sort(np.stack([near, far]), axis=0)
        order = edges[0].argsort()
        return _Bins(edges[:, order], self._counts[order])


def _value(keys: NDArray[np.intp]) -> NDArray[np.float64]:
    """The number whose upper 16 bits are given; the one past the largest is cut to it."""
    values = (keys << 16).astype(np.uint32).view(np.float32)
    limit = np.finfo(np.float32).max
    return values.clip(-limit, limit).astype(np.float64)


def quantization(low: float, high: float, symmetric: bool) -> tuple[np.float32, int]:
    """(scale, zero point) of a range: a real value is `(q - zero point) * scale`.

    symmetric: int8 from -127 to 127 with zero point 0; otherwise uint8 from 0 to 255, whose zero
    point is rounded, so that a bound may move by half a step. A range without width, or too narrow
    for a normal float32, gives scale 1 and zero point 0.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    wide = max(-low, high) / 127 if symmetric else (high - low) / 255
    scale = np.float32(wide)
    if scale < np.finfo(np.float32).tiny:
        return np.float32(1), 0
    return scale, 0 if symmetric else round(-low / float(scale))


def _squared_error(bins: _Bins, low: float, high: float, symmetric: bool) -> float:
    """The summed squared error of quantising the values of a histogram with this range.

    Exact for values spread evenly within each bin: with t the value in steps of the scale, n the
    nearest step that 8 bits have and f = t - n, the integral of f**2 over t is n/12 + f**3/3, on
    either side of where n changes and beyond where it ends.
    """
    scale, zero_point = quantization(low, high, symmetric)
    first, last = (-127, 127) if symmetric else (-zero_point, 255 - zero_point)
    t = bins.edges / float(scale)  # (2, n)
    n = np.rint(t).clip(first, last)
    f = t - n
    integral = n / 12 + f * f * f / 3
    # the bin of 0 has no width where a library made the processor take tiny numbers for 0
    width = np.maximum(t[1] - t[0], np.finfo(np.float64).tiny)
    mean = (integral[1] - integral[0]) / width
    return float(bins.counts @ mean) * float(scale) ** 2


def _around_zero(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    if symmetric:
        return -max(-low, high), max(-low, high)
    return min(low, 0.0), max(high, 0.0)


def _not_finite(name: str) -> ArtifactError:
    return ArtifactError(
        f"tensor {name!r} holds NaN or infinity on a calibration image, before anything is "
        "quantised; export the artifact again, and compare it with its checkpoint"
    )
