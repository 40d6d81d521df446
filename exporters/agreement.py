"""How far an artifact of lower precision finds what its reference finds.

Rounding moves scores and boxes a little, so nothing is equal any more. What counts is whether the
detections a user would see are still there, and none that he would not; and, as one number for
choosing between artifacts, how far everything moved.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.difference import Difference, average, boxes_apart, difference
from rfdetr_edge.backends import Session
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector

CONFIDENT = 0.5
"""The score from which a detection is one that a user would see: the runtime's threshold."""
NOTHING_FOUND = (
    "nothing was compared: there is no confident detection in these images; give some that show "
    "what it finds, with --images DIR"
)
"""For artifacts whose agreement says nothing."""
# A partner may score this much less, so that a detection at the threshold is not lost by rounding.
_SLACK = 0.15
_LEAST_IOU = 0.5
# Of the confident detections: more than this share lost or invented is a user's complaint.
_MOST_MISSING = 0.02
# From this score on, detections count in the disagreement.
_NOTICED = 0.1


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two artifacts find on the same images.

    wanted: confident detections of the reference; lost: those without a partner. found, invented:
        the same of the candidate.
    average: the mean differences of confident pairs, None without any.
    disagreement: 0 to 1. Each detection from a score of 0.1 on counts by its score; 0 where all
        have equal partners, 1 where none has any.
    """

    images: int
    wanted: int
    lost: int
    found: int
    invented: int
    average: Difference | None
    disagreement: float

    def __str__(self) -> str:
        return (
            f"{self.wanted - self.lost} of {self.wanted} confident detections kept, "
            f"{self.invented} invented on {self.images} images"
        )

    @property
    def says_something(self) -> bool:
        """Whether either found anything confident; otherwise they agree on nothing at all."""
        return self.wanted + self.found > 0

    @property
    def close(self) -> bool:
        """Whether at most 2 % of the confident detections are lost or invented."""
        return self.lost + self.invented <= _MOST_MISSING * (self.wanted + self.found)


def detections(
    session: Session, images: Iterable[NDArray[Any]], advance: Callable[[], None] = lambda: None
) -> tuple[Detections, ...]:
    """Of each image, every row above a score of 0. advance: called after each."""
    detector = Detector.from_session(session)
    found = []
    for image in images:
        found.append(detector.predict([image], threshold=0.0)[0])
        advance()
    return tuple(found)


def agreement(pairs: Iterable[tuple[Detections, Detections]]) -> Agreement:
    """Compares (reference, candidate) of each image, both with every row above a score of 0."""
    images = wanted = lost = found = invented = 0
    apart: list[Difference] = []
    weights = gaps = 0.0
    for reference, candidate in pairs:
        images += 1
        for ours, theirs in ((reference, candidate), (candidate, reference)):
            partners, ious, other = _partners(ours, theirs)
            scores = ours.confidence[: len(partners)]
            seen = scores >= CONFIDENT
            missing = seen & ((ious < _LEAST_IOU) | (other < CONFIDENT - _SLACK))
            if ours is reference:
                wanted, lost = wanted + int(seen.sum()), lost + int(missing.sum())
                apart += [
                    difference(ours[row], theirs[int(partners[row])])
                    for row in np.flatnonzero(seen & ~missing).tolist()
                ]
            else:
                found, invented = found + int(seen.sum()), invented + int(missing.sum())
            closeness = ious * (1 - np.abs(scores - other))
            weights += float(scores.sum())
            gaps += float((scores * (1 - closeness)).sum())
    return Agreement(
        images, wanted, lost, found, invented, average(apart), gaps / weights if weights else 0.0
    )


def _partners(
    ours: Detections, theirs: Detections
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each of our rows from _NOTICED on: the nearest row of its class, their IoU, its score.

    Each row is a partner once. Where there is none IoU and score are 0.
    """
    count = int((ours.confidence >= _NOTICED).sum())
    partners, ious, scores = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
    free = np.ones(len(theirs), bool)
    for row in range(count):
        fits = free & (theirs.class_id == ours.class_id[row])
        if not fits.any():
            continue
        iou = 1 - boxes_apart(ours.xyxy[row], theirs.xyxy, ours.source_size)
        # of several on the same place the one with the nearest score
        value = np.where(fits, iou * (1 - np.abs(theirs.confidence - ours.confidence[row])), -1.0)
        best = int(np.argmax(value))
        if iou[best] > 0:
            partners[row], ious[row], scores[row] = best, iou[best], theirs.confidence[best]
            free[best] = False
    return partners, ious, scores
