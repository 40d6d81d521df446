"""How far two detections are apart that ought to be the same one, and how far they may be."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.detections import Detections

# The IoU of a sliver says nothing: rounding moves its sides by more than it is wide. Such boxes are
# compared by their corners. Both are shares of the image's sides.
_SLIVER = 2e-3
_SLIVER_TOLERANCE = 2e-5
# For the same reason the points of smaller boxes are measured by this share of the image.
_SMALLEST_SIDE = 1e-2
# Where the logits of both lie this near 0 the outline of a mask passes, and rounding puts the cell
# on either side; of a mask of a few cells that would be a large share.
_OUTLINE = 1e-3

_LABELS = ("1 - IoU", "score", "1 - mask IoU", "points", "point confidence", "covariance")


class Difference(NamedTuple):
    """How far the two of a matched pair are apart, or at most are, over many pairs; 0 is equal.

    box, mask: 1 - IoU. score: of the class, from 0 to 1.
    points: the largest distance of all points, as a share of the box's longer side, all in shares
        of the image's sides. confidence: of the points, the largest.
    covariance: the largest of all entries, as a share of the trace.
    None for what the task does not have.
    """

    box: float
    score: float
    mask: float | None = None
    points: float | None = None
    confidence: float | None = None
    covariance: float | None = None

    def within(self, limits: "Difference") -> bool:
        """Whether every part is at most that of `limits`."""
        parts = zip(self, limits, strict=True)
        return all(part is None or limit is None or part <= limit for part, limit in parts)

    def __str__(self) -> str:
        parts = zip(_LABELS, self, strict=True)
        return ", ".join(f"{label} {part:.1e}" for label, part in parts if part is not None)


LIMITS = Difference(1e-3, 1e-3, mask=1e-3, points=1e-3, confidence=1e-3, covariance=1e-2)


def boxes_apart(
    box: NDArray[np.float32], others: NDArray[np.float32], source_size: tuple[int, int]
) -> NDArray[np.float64]:
    """1 - IoU of one xyxy box with (N, 4) others; 0 for slivers whose corners coincide."""
    height, width = source_size
    sides_of_image = np.array([width, height, width, height], np.float64)
    a, b = box / sides_of_image, others / sides_of_image
    sides = (np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2])).clip(min=0)
    intersection = sides.prod(axis=1)
    union = (a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(axis=1) - intersection
    iou: NDArray[np.float64] = intersection / union.clip(min=1e-12)
    if (a[2:] - a[:2]).min() < _SLIVER:
        iou[np.abs(b - a).max(axis=1) <= _SLIVER_TOLERANCE] = 1.0
    return 1.0 - iou


def difference(one: Detections, other: Detections) -> Difference:
    """Of two Detections of one row each, of the same image, class table and schema."""
    apart = float(boxes_apart(one.xyxy[0], other.xyxy, one.source_size)[0])
    found = Difference(apart, float(abs(one.confidence[0] - other.confidence[0])))
    if one.masks is not None and other.masks is not None:
        found = found._replace(mask=_masks_apart(one.masks.logits[0], other.masks.logits[0]))
    if one.keypoints is not None and other.keypoints is not None:
        height, width = one.source_size
        wh = np.array([width, height], np.float64)
        side = max(((one.xyxy[0, 2:] - one.xyxy[0, :2]) / wh).max(), _SMALLEST_SIDE)
        distances = np.hypot(*((one.keypoints - other.keypoints)[0] / wh).T)
        found = found._replace(points=float(distances.max() / side))
    if one.keypoint_confidence is not None and other.keypoint_confidence is not None:
        apart = float(np.abs(one.keypoint_confidence - other.keypoint_confidence).max())
        found = found._replace(confidence=apart)
    if one.covariance is not None and other.covariance is not None:
        apart = _covariances_apart(one.covariance[0], other.covariance[0])
        found = found._replace(covariance=apart)
    return found


def largest(differences: Sequence[Difference]) -> Difference | None:
    """Part by part, of differences of one task; None of none."""
    return _by_part(max, differences)


def average(differences: Sequence[Difference]) -> Difference | None:
    """Part by part, the mean of differences of one task; None of none."""
    return _by_part(fmean, differences)


def _by_part(
    reduce: Callable[[Sequence[float]], float], differences: Sequence[Difference]
) -> Difference | None:
    if not differences:
        return None
    parts = zip(*differences, strict=True)
    return Difference._make(None if None in part else reduce(part) for part in parts)


def _masks_apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """1 - IoU of (h, w) logits on the network's own grid; 0 for two empty masks.

    Both would be resized to the image alike: that adds no difference, only the photo's size.
    """
    decided = np.maximum(np.abs(one), np.abs(other)) > _OUTLINE
    inside = np.stack([one > 0, other > 0]) & decided
    union = np.count_nonzero(inside.any(axis=0))
    return 1.0 - np.count_nonzero(inside.all(axis=0)) / union if union else 0.0


def _covariances_apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of (K, 2, 2) matrices, NaN where there is none: infinite if only one has one."""
    absent = np.isnan(one).any(axis=(1, 2)), np.isnan(other).any(axis=(1, 2))
    trace = np.trace(one, axis1=1, axis2=2).clip(min=np.finfo(np.float32).tiny)
    shares = np.abs(one.astype(np.float64) - other).max(axis=(1, 2)) / trace
    shares[absent[0] != absent[1]] = np.inf
    return float(shares[~(absent[0] & absent[1])].max(initial=0.0))
