"""The confidence threshold with the best F1 score, by a sweep over all of them.

Needs NumPy alone. F1 is the harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.detections import Detections

THRESHOLDS = np.arange(101) / 100
_IOU = 0.5

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class F1Sweep:
    """The best threshold and what it gives: means over the classes that the images hold.

    threshold: the first of 0, 0.01, ..., 1 with the highest mean F1; a detection counts when its
    confidence is at least that. f1, precision, recall: 0 to 1. per_class: F1 at the threshold by
    class name. NaN where the images hold nothing to find.
    """

    threshold: float
    f1: float
    precision: float
    recall: float
    per_class: Mapping[str, float]


def best_threshold(document: Mapping[str, Any], detections: Mapping[int, Detections]) -> F1Sweep:
    """Compares detections with a COCO document at every threshold.

    A class's detections in an image are matched in order of confidence, each with the free box of
    highest IoU, from 0.5 on. One that has no match but lies, by half, in a crowd region counts as
    neither right nor wrong.

    document, detections: what `evaluation.average_precision` takes, and has no complaint about.
    """
    if not detections:
        return F1Sweep(math.nan, math.nan, math.nan, math.nan, {})
    classes = next(iter(detections.values())).classes
    slots = {category_id: slot for slot, category_id in enumerate(classes.category_ids)}
    rows: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in detections}
    for row in document["annotations"]:
        if row["image_id"] in rows and row["category_id"] in slots:
            rows[row["image_id"]].append(row)
    wanted = np.zeros(len(classes), np.int64)
    for row in (row for listed in rows.values() for row in listed if not row["iscrowd"]):
        wanted[slots[row["category_id"]]] += 1
    outcomes = [_match(found, rows[i], slots) for i, found in detections.items()]
    scores = np.concatenate([found.confidence for found in detections.values()])
    labels = np.concatenate([found.class_id for found in detections.values()])
    hit, counted = (np.concatenate(parts) for parts in zip(*outcomes, strict=True))
    return _summary(
        wanted,
        _counts(scores, labels, hit, len(classes)),
        _counts(scores, labels, counted, len(classes)),
        classes.foreground(),
        slots,
    )


def _match(
    found: Detections, rows: Iterable[Mapping[str, Any]], slots: Mapping[int | None, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of one image's detections: which are right, and which count (as right or wrong)."""
    rows = list(rows)
    crowd = np.array([bool(row["iscrowd"]) for row in rows], bool)
    labels = np.array([slots[row["category_id"]] for row in rows], np.int64)
    xywh = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    overlap = _overlap(found.xyxy.astype(np.float64), boxes, crowd)
    overlap[found.class_id[:, None] != labels] = 0
    hit = np.zeros(len(found), bool)
    free = overlap.copy()
    free[:, crowd] = 0
    candidates = np.flatnonzero((free >= _IOU).any(axis=1))
    for index in candidates[np.argsort(-found.confidence[candidates], kind="stable")]:
        best = int(np.argmax(free[index]))
        if free[index, best] >= _IOU:
            hit[index] = True
            free[:, best] = 0
    return hit, hit | ~(overlap[:, crowd] >= _IOU).any(axis=1)


def _overlap(boxes: _Floats, truth: _Floats, crowd: NDArray[np.bool_]) -> _Floats:
    """IoU of every (n, 4) box with every (m, 4) one, xyxy; (n, m).

    With a crowd region it is the share of the detection's own area, as pycocotools has it.
    """
    corner = np.minimum(boxes[:, None, 2:], truth[:, 2:])
    size = (corner - np.maximum(boxes[:, None, :2], truth[:, :2])).clip(0)
    both = size.prod(axis=2)
    own, other = ((part[:, 2:] - part[:, :2]).prod(axis=1) for part in (boxes, truth))
    union = np.where(crowd, own[:, None], own[:, None] + other - both)
    shares: _Floats = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return shares


def _counts(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    classes: int,
) -> NDArray[np.int64]:
    """How many chosen detections of every class reach every threshold: (classes, 101)."""
    counts = np.zeros((classes, len(THRESHOLDS)), np.int64)
    limits = THRESHOLDS.astype(scores.dtype)  # so that a score printed as 0.7 reaches 0.7
    for slot in range(classes):
        own = np.sort(scores[chosen & (labels == slot)])
        counts[slot] = len(own) - np.searchsorted(own, limits, side="left")
    return counts


def _summary(
    wanted: NDArray[np.int64],
    right: NDArray[np.int64],
    given: NDArray[np.int64],
    ids: Mapping[str, int],
    slots: Mapping[int | None, int],
) -> F1Sweep:
    """wanted: (classes,) boxes to find; right, given: (classes, 101) detections."""
    f1 = _share(2 * right, given + wanted[:, None])
    precision, recall = _share(right, given), _share(right, wanted[:, None] + 0 * right)
    present = wanted > 0
    if not present.any():
        return F1Sweep(math.nan, math.nan, math.nan, math.nan, dict.fromkeys(ids, math.nan))
    best = int(np.argmax(f1[present].mean(axis=0)))
    return F1Sweep(
        threshold=float(THRESHOLDS[best]),
        f1=float(f1[present, best].mean()),
        precision=float(precision[present, best].mean()),
        recall=float(recall[present, best].mean()),
        per_class={
            name: float(f1[slots[category_id], best]) if present[slots[category_id]] else math.nan
            for name, category_id in ids.items()
        },
    )


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> _Floats:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
