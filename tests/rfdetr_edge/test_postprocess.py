"""Detections equal upstream's, row by row (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest

from rfdetr_edge.classes import ClassTable, coco_classes, named_classes
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.postprocess import best_pairs, postprocess

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "postprocess.npz")
CASES = [case for case in json.loads(str(GOLDEN["cases"])) if not case["schema"]]
EVERY_PAIR = -1.0
AB = named_classes("contiguous", ["a", "b"])


def _classes(case: dict) -> ClassTable:
    names = case["class_names"]
    return coco_classes() if names is None else named_classes("background-last", names)


def _run(case: dict, threshold: float) -> list[Detections]:
    name = case["name"]
    return postprocess(
        GOLDEN[f"{name}/in_boxes"],
        GOLDEN[f"{name}/in_logits"],
        source_sizes=[(height, width) for height, width in GOLDEN[f"{name}/in_sizes"].tolist()],
        classes=_classes(case),
        num_select=case["num_select"],
        threshold=threshold,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_ranked_pair_equals_golden(case: dict) -> None:
    for index, found in enumerate(_run(case, EVERY_PAIR)):
        key = f"{case['name']}/raw{index}"
        np.testing.assert_array_equal(found.class_id, GOLDEN[f"{key}_labels"])
        np.testing.assert_allclose(found.confidence, GOLDEN[f"{key}_scores"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.xyxy, GOLDEN[f"{key}_boxes"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("case", "threshold"),
    [
        pytest.param(case, threshold, id=f"{case['name']}-{threshold}")
        for case in CASES
        for threshold in case["thresholds"]
    ],
)
def test_detections_over_a_threshold_equal_golden(case: dict, threshold: float) -> None:
    for index, found in enumerate(_run(case, threshold)):
        key = f"{case['name']}/thr{threshold}_{index}"
        np.testing.assert_array_equal(found.class_id, GOLDEN[f"{key}_class_id"])
        assert found.class_name.tolist() == GOLDEN[f"{key}_class_name"].tolist()
        np.testing.assert_allclose(found.confidence, GOLDEN[f"{key}_confidence"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.xyxy, GOLDEN[f"{key}_xyxy"], rtol=0, atol=1e-3)
        assert found.source_size == tuple(GOLDEN[f"{case['name']}/in_sizes"][index])


def _one_query(logits: list[float], box: list[float], threshold: float = EVERY_PAIR) -> Detections:
    return postprocess(
        np.array([[box]], np.float32),
        np.array([[logits]], np.float32),
        source_sizes=[(100, 200)],
        classes=AB,
        num_select=2,
        threshold=threshold,
    )[0]


def test_box_is_in_pixels_of_the_source() -> None:
    found = _one_query([0.0, -1.0], [0.5, 0.5, 0.5, 0.2])
    np.testing.assert_allclose(found.xyxy, [[50, 40, 150, 60]] * 2, rtol=1e-6)


def test_negative_size_is_an_empty_box_and_outside_is_clamped() -> None:
    np.testing.assert_array_equal(_one_query([0, 0], [0.5, 0.5, -1, -1]).xyxy[0], [100, 50] * 2)
    np.testing.assert_array_equal(_one_query([0, 0], [0, 2, 4, 0.1]).xyxy[0], [0, 100, 200, 100])


def test_confidence_equal_to_the_threshold_is_dropped() -> None:
    assert _one_query([0.0, 1.0], [0.5] * 4, threshold=0.5).class_id.tolist() == [1]


def test_nan_takes_a_place_in_the_ranking_but_is_never_kept() -> None:
    assert best_pairs(np.array([0.1, np.nan, 0.9], np.float32), 2).tolist() == [1, 2]
    found = _one_query([np.nan, 1.0], [0.5] * 4)
    assert found.class_id.tolist() == [1]


def test_extreme_logits_warn_of_nothing() -> None:
    assert _one_query([-200.0, 200.0], [0.5] * 4).confidence.tolist() == [1.0, 0.0]


def test_ties_keep_the_order_of_queries_then_slots() -> None:
    equal = np.full(5000, 0.25, np.float32)
    assert best_pairs(equal, 3).tolist() == [0, 1, 2]
    equal[4000] = 0.5
    assert best_pairs(equal, 3).tolist() == [4000, 0, 1]


def test_half_precision_outputs_give_float32() -> None:
    found = postprocess(
        np.full((1, 1, 4), 0.5, np.float16),
        np.zeros((1, 1, 2), np.float16),
        source_sizes=[(10, 10)],
        classes=AB,
        num_select=1,
        threshold=0.3,
    )[0]
    assert found.confidence.dtype == np.float32
    np.testing.assert_array_equal(found.xyxy, np.array([[2.5, 2.5, 7.5, 7.5]], np.float32))


@pytest.mark.parametrize(
    ("dets", "labels", "said"),
    [
        ((1, 5, 4), (1, 5, 3), "scores 3 class slots.*has 2.*--class-layout.*--classes"),
        ((1, 5, 4), (1, 6, 2), "no detector's"),
        ((1, 5, 2), (1, 5, 2), "no detector's"),
        ((5, 4), (5, 2), "no detector's"),
    ],
)
def test_foreign_outputs_are_one_clear_error(
    dets: tuple[int, ...], labels: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ArtifactError, match=said):
        postprocess(
            np.zeros(dets, np.float32),
            np.zeros(labels, np.float32),
            source_sizes=[(10, 10)],
            classes=AB,
            num_select=5,
            threshold=0.5,
        )
