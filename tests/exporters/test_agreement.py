"""Agreement counts what a user would miss, and grows with every kind of distance."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import CELLS

from exporters.agreement import agreement
from rfdetr_edge.detections import Detections

BOXES = np.array([[10, 10, 50, 50], [60, 20, 90, 80], [5, 60, 40, 95]], np.float32)


def _detections(
    xyxy: np.ndarray = BOXES, scores: tuple[float, ...] = (0.9, 0.7, 0.3)
) -> Detections:
    return Detections(
        xyxy, np.array(scores, np.float32), np.arange(len(xyxy)) % 3, CELLS, (100, 100)
    )


def test_equal_detections_agree() -> None:
    seen = agreement([(_detections(), _detections())])
    assert (seen.wanted, seen.lost, seen.found, seen.invented) == (2, 0, 2, 0)
    assert seen.disagreement == pytest.approx(0, abs=1e-6)
    assert seen.average is not None
    assert max(seen.average.box, seen.average.score) == pytest.approx(0, abs=1e-6)
    assert seen.close


@pytest.mark.parametrize(
    ("candidate", "lost", "invented"),
    [
        (_detections()[1:], 1, 0),  # the best one is gone
        (_detections(scores=(0.9, 0.3, 0.3)), 1, 0),  # no longer confident
        (_detections(scores=(0.9, 0.45, 0.3)), 0, 0),  # within the slack of the threshold
        (_detections(scores=(0.9, 0.7, 0.69)), 0, 1),
        (_detections(BOXES + 40), 2, 2),
        (replace(_detections(), class_id=np.array([1, 1, 2])), 1, 1),
    ],
)
def test_what_a_user_would_notice_is_counted(
    candidate: Detections, lost: int, invented: int
) -> None:
    seen = agreement([(_detections(), candidate)])
    assert (seen.lost, seen.invented) == (lost, invented)
    assert seen.disagreement > 0
    assert seen.close == (lost + invented == 0)


def test_a_partner_counts_once() -> None:
    twice = _detections(np.repeat(BOXES[:1], 2, axis=0), (0.9, 0.8))
    twice = replace(twice, class_id=np.zeros(2, np.int64))
    assert agreement([(twice, twice[:1])]).lost == 1


@pytest.mark.parametrize("shift", [1, 3, 9])
def test_disagreement_grows_with_the_distance(shift: float) -> None:
    def moved(by: float) -> float:
        return agreement([(_detections(), _detections(BOXES + np.float32(by)))]).disagreement

    assert moved(shift) > moved(shift / 2) > 0


def test_disagreement_is_complete_without_any_partner() -> None:
    assert agreement([(_detections(), _detections()[:0])]).disagreement == pytest.approx(1)
    assert agreement([(_detections()[:0], _detections()[:0])]).disagreement == 0
