"""The threshold with the best F1, against a slow count that matches anew at every threshold."""

import math

import numpy as np
import pytest
from graphs import CELLS
from hypothesis import given
from hypothesis import strategies as st

from rfdetr_edge import Detections
from rfdetr_edge.f1 import best_threshold

NAMES = {1: "RBC", 2: "WBC", 3: "Platelets"}
BOX = (100, 100, 100, 100)
SAME, ELSEWHERE = (100, 100, 200, 200), (400, 300, 500, 400)


def document(*rows):
    """rows: (image id, category id, xywh, iscrowd)."""
    fields = ("image_id", "category_id", "bbox", "iscrowd")
    return {"annotations": [dict(zip(fields, row, strict=True)) for row in rows]}


def detections(*rows):
    """rows: (xyxy, confidence, slot), highest confidence first."""
    rows = sorted(rows, key=lambda row: -row[1])
    boxes, confidence, class_id = zip(*rows, strict=True) if rows else ([], [], [])
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(confidence, np.float32),
        np.array(class_id, np.int64),
        CELLS,
        (480, 640),
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(SAME, 0.7, 0)], (0.0, 1, 1, 1)),
        ([(SAME, 0.7, 0), (ELSEWHERE, 0.3, 0)], (0.31, 1, 1, 1)),
        ([(ELSEWHERE, 0.9, 0), (SAME, 0.7, 0)], (0.0, 2 / 3, 1 / 2, 1)),
        ([(SAME, 0.7, 0), (SAME, 0.6, 0)], (0.61, 1, 1, 1)),  # the second is a duplicate
        ([(SAME, 0.7, 1)], (0.0, 0, 0, 0)),
        ([], (0.0, 0, 0, 0)),
    ],
)
def test_cases_worked_by_hand(rows, expected):
    result = best_threshold(document((1, 1, BOX, 0)), {1: detections(*rows)})
    got = (result.threshold, result.f1, result.precision, result.recall)
    assert got == pytest.approx(expected)
    assert result.per_class["RBC"] == pytest.approx(expected[1])
    assert math.isnan(result.per_class["WBC"])


def test_a_score_printed_as_the_threshold_reaches_it():
    rows = [(SAME, 0.7, 0), (ELSEWHERE, 0.69, 0)]
    assert best_threshold(document((1, 1, BOX, 0)), {1: detections(*rows)}).threshold == 0.7


def test_what_lies_in_a_crowd_counts_as_neither_right_nor_wrong():
    crowd = (1, 1, (350, 250, 250, 250), 1)
    rows = [(SAME, 0.7, 0), (ELSEWHERE, 0.8, 0), (ELSEWHERE, 0.6, 0)]
    result = best_threshold(document((1, 1, BOX, 0), crowd), {1: detections(*rows)})
    assert (result.threshold, result.f1) == (0.0, 1)
    other_class = [*rows, (ELSEWHERE, 0.9, 1)]
    both = document((1, 1, BOX, 0), crowd, (1, 2, BOX, 0))
    assert best_threshold(both, {1: detections(*other_class)}).per_class["RBC"] == 1


def test_images_that_hold_nothing_have_no_best_threshold():
    result = best_threshold(document(), {1: detections((SAME, 0.7, 0))})
    numbers = (result.threshold, result.f1, result.precision, result.recall)
    assert all(map(math.isnan, (*numbers, *result.per_class.values())))
    assert list(result.per_class) == list(NAMES.values())


def iou(one, other):
    size = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    both = max(size[0], 0) * max(size[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def slow_counts(truth, found, category, threshold):
    """True positives, false positives, boxes to find."""
    right = wrong = wanted = 0
    for image_id, rows in found.items():
        boxes = [
            (x, y, x + w, y + h)
            for i, c, (x, y, w, h), _ in truth
            if (i, c) == (image_id, category)
        ]
        wanted += len(boxes)
        chosen = [row for row in rows if row[2] == category - 1 and row[1] >= threshold]
        for box, _, _ in sorted(chosen, key=lambda row: -row[1]):
            best = max(boxes, key=lambda other: iou(box, other), default=None)
            if best is not None and iou(box, best) >= 0.5:
                boxes.remove(best)
                right += 1
            else:
                wrong += 1
    return right, wrong, wanted


def slow_sweep(truth, found):
    best = (-1.0,)
    for step in range(101):
        scores = []
        for category in NAMES:
            right, wrong, wanted = slow_counts(truth, found, category, step / 100)
            if wanted:
                precision = right / (right + wrong) if right + wrong else 0
                recall = right / wanted
                f1 = 2 * precision * recall / (precision + recall) if right else 0
                scores.append((f1, precision, recall))
        means = tuple(sum(column) / len(scores) for column in zip(*scores, strict=True))
        if means[0] > best[0] + 1e-12:
            best = (*means, step / 100)
    return best


sides = st.tuples(*[st.integers(0, 4)] * 2, *[st.integers(2, 5)] * 2)
truths = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3), sides, st.just(0)), min_size=1)
# scores between the thresholds, and no two alike: the order of equal ones is not defined
scores = st.lists(st.integers(0, 199), max_size=12, unique=True)


@given(truths, scores, st.data())
def test_it_equals_matching_anew_at_every_threshold(truth, thousandths, data):
    found = {1: [], 2: []}
    for number in thousandths:
        x, y, w, h = data.draw(sides)
        image_id, slot = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 2))
        found[image_id].append(((x, y, x + w, y + h), (2 * number + 1) / 400, slot))
    result = best_threshold(
        document(*truth), {image_id: detections(*rows) for image_id, rows in found.items()}
    )
    # the slow one may take another of two boxes with one IoU, which only counts when it matters
    *means, threshold = slow_sweep(truth, found)
    assert (result.f1, result.precision, result.recall) == pytest.approx(means)
    assert result.threshold == threshold
