"""Keypoints as the network gives them, and what they say: pixels, confidence, uncertainty.

Eight numbers a point: x and y relative to the image, the logits of being findable and of being
visible, the inverse covariance as (log l11, l21, log l22), and one that only the network uses. With
L = [[l11, 0], [l21, l22]] the inverse covariance is L L^T. Formulas: upstream rfdetr 1.11.2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.keypoint_schema import KeypointSchema

CHANNELS = 8
_FINDABLE = 2
_PRECISION = slice(4, 7)
# x, y, findable and visible logits, precision, the last: what a column without a point reads
_ABSENT = (0.0, 0.0, -np.inf, -np.inf, np.nan, np.nan, np.nan, np.nan)
_TINY = 1e-12
_BELOW_ONE = np.nextafter(np.float32(1.0), np.float32(0.0))

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Points(NamedTuple):
    """The points of N rows, K columns each; named as the fields of `Detections` are.

    A column without a point of the row's class has x, y and confidence 0, the rest NaN.
    """

    keypoints: Float32
    keypoint_confidence: Float32
    keypoint_precision: Float32
    covariance: Float32


@dataclass(frozen=True, slots=True, eq=False)
class RawPoints:
    """The points of rows, each of one query read as one class.

    values: (N, K, 8) float32, K being the schema's widest class.
    active: (N, K) bool, the columns that are points of the row's class.
    in_schema: (N,) bool, whether the schema has an entry for the class, be it without points.
    """

    values: Float32
    active: NDArray[np.bool_]
    in_schema: NDArray[np.bool_]

    def fused(self, confidence: Float32, trace_alpha: float) -> Float32:
        """The confidence of each row, (N,), lowered by how uncertain its points are.

        With m the mean over the points of the covariance's trace (relative to the image), weighted
        by their confidence, in logarithms: sigmoid(log(confidence) - trace_alpha * log(m)), below
        1. For a class without points log(m) is 0, which still makes p / (1 + p) of p. Rows outside
        the schema, and all with a trace_alpha of 0, stay as they are.
        """
        if trace_alpha == 0:
            return confidence
        with np.errstate(all="ignore"):
            log_weight = np.log(np.maximum(_sigmoid(self.values[..., _FINDABLE]), _TINY))
            weighted = _log_trace(self.values[..., _PRECISION]) + log_weight
            log_mean = _log_sum(weighted, self.active) - _log_sum(log_weight, self.active)
            log_mean = np.where(self.active.any(axis=1), log_mean, 0.0)
            fused = _sigmoid(np.log(confidence) - trace_alpha * log_mean).astype(np.float32)
        return np.where(self.in_schema, np.minimum(fused, _BELOW_ONE), confidence)

    def decoded(self, rows: NDArray[np.bool_], source_size: tuple[int, int]) -> Points:
        """The given rows in pixels of an image of (height, width), not clamped to it."""
        values = self.values[rows]
        height, width = source_size
        precision = values[..., _PRECISION]
        with np.errstate(over="ignore"):
            confidence = _sigmoid(values[..., _FINDABLE]).astype(np.float32)
        return Points(
            values[..., :2] * np.array([width, height], np.float32),
            confidence,
            precision.copy(),
            pixel_covariance(precision, source_size),
        )


def raw_points(
    keypoints: Float32, query: NDArray[np.intp], slot: NDArray[np.intp], schema: KeypointSchema
) -> RawPoints:
    """The points of rows (N,) of query and class slot.

    keypoints: (Q, classes of the schema * widest, 8), one image's output.
    """
    counts = np.array(schema.counts)
    in_schema = slot < len(counts)
    own = np.where(in_schema, slot, 0)
    active = np.arange(schema.widest) < np.where(in_schema, counts[own], 0)[:, None]
    by_class = keypoints.reshape(len(keypoints), len(counts), schema.widest, CHANNELS)
    values = by_class[query, own].astype(np.float32, copy=False)  # a copy already
    values[~active] = _ABSENT
    return RawPoints(values, active, in_schema)


def pixel_covariance(precision: Float32, source_size: tuple[int, int]) -> Float32:
    """(N, K, 3) log l11, l21, log l22 -> (N, K, 2, 2) covariance of x and y in pixels squared.

    A relative measure: the loss that trains it divides squared errors by the area of the box, so
    the likely error in pixels is this times the share of the image that the box covers. Computed
    in float64. All four are NaN where one of them is no finite float32.
    """
    height, width = source_size
    with np.errstate(all="ignore"):
        log_l11, l21, log_l22 = np.moveaxis(precision.astype(np.float64), -1, 0)
        l11, l22 = np.exp(log_l11), np.exp(log_l22)
        scale = 1.0 / (l11 * l22) ** 2
        xx = width * width * (l21 * l21 + l22 * l22) * scale
        xy = width * height * (-l11 * l21) * scale + 0.0  # no -0.0
        yy = height * height * (l11 * l11) * scale
        covariance = np.stack([xx, xy, xy, yy], axis=-1).astype(np.float32)
    covariance[~np.isfinite(covariance).all(axis=-1)] = np.nan
    return covariance.reshape(*precision.shape[:-1], 2, 2)


def _log_trace(precision: Float32) -> Float64:
    """(..., 3) log l11, l21, log l22 -> (...) log of the trace of the covariance."""
    log_l11, l21, log_l22 = np.moveaxis(precision.astype(np.float64), -1, 0)
    first, second = -2.0 * log_l11, -2.0 * log_l22
    mixed = 2.0 * np.log(np.maximum(np.abs(l21), _TINY)) + first + second
    total: Float64 = np.logaddexp(np.logaddexp(first, second), mixed)
    return total


def _log_sum(values: Float64, active: NDArray[np.bool_]) -> Float64:
    """Log of the sum of exp over the active columns of (N, K); -inf without any."""
    total: Float64 = np.logaddexp.reduce(values, axis=1, where=active, initial=-np.inf)
    return total


def _sigmoid(logits: NDArray[np.floating]) -> Float64:
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
