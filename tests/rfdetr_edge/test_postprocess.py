"""Detections equal upstream's, row by row (tests/golden/README.md)."""

import warnings

import numpy as np
import pytest
from golden_outputs import CASES, GOLDEN, keypoint_schema, raw_outputs, source_sizes

from rfdetr_edge.classes import ClassTable, coco_classes, named_classes, with_slots
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.keypoint_schema import KeypointSchema, numbered_schema
from rfdetr_edge.postprocess import RawOutputs, best_pairs, postprocess

EVERY_PAIR = -1.0
CORNERS = ("xyxy", "confidence")
AB = named_classes("contiguous", ["a", "b"])


def _classes(case: dict) -> ClassTable:
    names = case["class_names"]
    if names is None:
        return coco_classes()
    if case["schema"][:1] != [0]:
        return named_classes("background-last", names)
    # two classes in upstream's numbers, the second of which has no name
    return with_slots(named_classes("background-first", names), case["num_classes"] + 1)


def _run(case: dict, threshold: float) -> list[Detections]:
    return postprocess(
        raw_outputs(case),
        source_sizes=source_sizes(case),
        classes=_classes(case),
        num_select=case["num_select"],
        threshold=threshold,
        schema=keypoint_schema(case),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_ranked_pair_equals_golden(case: dict) -> None:
    for index, found in enumerate(_run(case, EVERY_PAIR)):
        key = f"{case['name']}/raw{index}"
        np.testing.assert_array_equal(found.class_id, GOLDEN[f"{key}_labels"])
        np.testing.assert_allclose(found.confidence, GOLDEN[f"{key}_scores"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.xyxy, GOLDEN[f"{key}_boxes"], rtol=0, atol=1e-3)
        assert (found.masks is None) == (f"{key}_masks_shape" not in GOLDEN)
        if found.masks is not None:
            shape = GOLDEN[f"{key}_masks_shape"]
            bits = np.unpackbits(GOLDEN[f"{key}_masks_packed"], axis=1)[:, : shape[2] * shape[3]]
            expected = bits.reshape(shape)[:, 0].astype(bool)
            masks = found.masks.to_bool() if case["upsample_masks"] else found.masks.logits > 0
            assert np.count_nonzero(masks != expected) == 0
        assert (found.keypoints is None) == (f"{key}_keypoints" not in GOLDEN)
        if found.keypoints is not None:
            points = GOLDEN[f"{key}_keypoints"]
            np.testing.assert_allclose(found.keypoints, points[..., :2], rtol=1e-6)
            np.testing.assert_allclose(found.keypoint_confidence, points[..., 2], atol=1e-6)
            precision = GOLDEN[f"{key}_keypoint_precision_cholesky"]
            np.testing.assert_array_equal(found.keypoint_precision, precision)


OVER_THRESHOLDS = [
    pytest.param(case, threshold, id=f"{case['name']}-{threshold}")
    for case in CASES
    for threshold in case["thresholds"]
]


@pytest.mark.parametrize(("case", "threshold"), OVER_THRESHOLDS)
def test_detections_over_a_threshold_equal_golden(case: dict, threshold: float) -> None:
    for index, found in enumerate(_run(case, threshold)):
        key = f"{case['name']}/thr{threshold}_{index}"
        box, score = ("data_xyxy", "detection_confidence") if found.schema else CORNERS
        np.testing.assert_array_equal(found.class_id, GOLDEN[f"{key}_class_id"])
        assert found.class_name.tolist() == GOLDEN[f"{key}_class_name"].tolist()
        np.testing.assert_allclose(found.confidence, GOLDEN[f"{key}_{score}"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.xyxy, GOLDEN[f"{key}_{box}"], rtol=0, atol=1e-3)
        assert found.source_size == tuple(GOLDEN[f"{case['name']}/in_sizes"][index])


WITH_MASKS = [one for one in OVER_THRESHOLDS if one.id.startswith("seg")]
WITH_KEYPOINTS = [one for one in OVER_THRESHOLDS if one.values[0]["schema"]]


@pytest.mark.parametrize(("case", "threshold"), WITH_MASKS)
def test_masks_over_a_threshold_equal_golden(case: dict, threshold: float) -> None:
    for index, found in enumerate(_run(case, threshold)):
        key = f"{case['name']}/thr{threshold}_{index}"
        mask = found.mask if case["upsample_masks"] else found.masks.logits > 0
        assert mask.shape == tuple(GOLDEN[f"{key}_mask_shape"])
        assert str(mask.dtype) == GOLDEN[f"{key}_mask_dtype"]
        areas = GOLDEN[f"{key}_mask_area"]
        np.testing.assert_array_equal(mask.sum(axis=(1, 2)), areas)


@pytest.mark.parametrize(("case", "threshold"), WITH_KEYPOINTS)
def test_keypoints_over_a_threshold_equal_golden(case: dict, threshold: float) -> None:
    with warnings.catch_warnings():  # supervision warns about its own dependencies on import
        warnings.simplefilter("ignore")
        pytest.importorskip("supervision")
    for index, found in enumerate(_run(case, threshold)):
        key = f"{case['name']}/thr{threshold}_{index}"
        points = found.to_supervision()
        np.testing.assert_allclose(points.xy, GOLDEN[f"{key}_keypoints_xy"], rtol=1e-6)
        confidence = GOLDEN[f"{key}_keypoint_confidence"]
        np.testing.assert_allclose(points.keypoint_confidence, confidence, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(points.visible, GOLDEN[f"{key}_visible"])
        assert sorted(points.data) == GOLDEN[f"{key}_data_keys"].tolist()
        covariance = GOLDEN[f"{key}_covariance"]
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-5)


def _one_query(logits: list[float], box: list[float], threshold: float = EVERY_PAIR) -> Detections:
    return postprocess(
        RawOutputs(np.array([[box]], np.float32), np.array([[logits]], np.float32)),
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
        RawOutputs(np.full((1, 1, 4), 0.5, np.float16), np.zeros((1, 1, 2), np.float16)),
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
            RawOutputs(np.zeros(dets, np.float32), np.zeros(labels, np.float32)),
            source_sizes=[(10, 10)],
            classes=AB,
            num_select=5,
            threshold=0.5,
        )


POINTED = numbered_schema([3, 1])


def _pointed(**changes) -> RawOutputs:
    """Five queries, each a little less sure than the one before."""
    rng = np.random.default_rng(0)
    logits = np.array([[[4.0 - row, -9.0] for row in range(5)]], np.float32)
    outputs = RawOutputs(np.full((1, 5, 4), 0.5, np.float32), logits)
    keypoints = rng.normal(size=(1, 5, 6, 8)).astype(np.float32)
    return outputs._replace(**({"keypoints": keypoints} | changes))


def _found(outputs: RawOutputs, schema: KeypointSchema | None, threshold: float) -> Detections:
    return postprocess(
        outputs,
        source_sizes=[(40, 60)],
        classes=AB,
        num_select=5,
        threshold=threshold,
        schema=schema,
    )[0]


def test_uncertain_points_lower_the_confidence_and_leave_the_order() -> None:
    keypoints = np.zeros((1, 5, 6, 8), np.float32)
    keypoints[0, 1, :, 4:7] = (-3.0, 0.0, -3.0)  # the second query knows little of its points
    ranked = _found(_pointed(keypoints=keypoints), POINTED, EVERY_PAIR)
    assert ranked.class_id.tolist() == [0] * 5
    assert np.argsort(-ranked.confidence).tolist() == [0, 2, 3, 4, 1]
    kept = _found(_pointed(keypoints=keypoints), POINTED, float(ranked.confidence[1]))
    np.testing.assert_array_equal(kept.confidence, ranked.confidence[[0, 2, 3, 4]])
    np.testing.assert_array_equal(kept.keypoints, ranked.keypoints[[0, 2, 3, 4]])


def test_a_row_whose_uncertainty_is_nan_is_never_kept() -> None:
    outputs = _pointed()
    outputs.keypoints[0, 2, 0, 4] = np.nan
    assert len(_found(outputs, POINTED, EVERY_PAIR)) == 4


def test_masks_belong_to_the_kept_queries_alone() -> None:
    masks = np.random.default_rng(0).normal(size=(1, 5, 4, 6)).astype(np.float32)
    found = _found(_pointed(keypoints=None, masks=masks), None, 0.9)
    assert len(found) == 2
    np.testing.assert_array_equal(found.masks.logits, masks[0, :2])
    assert not np.shares_memory(found.masks.logits, masks)
    assert found.mask.shape == (2, 40, 60)


@pytest.mark.parametrize(
    ("changes", "schema", "said"),
    [
        ({"masks": np.zeros((1, 5, 4, 4), np.float32)}, POINTED, "gives both"),
        ({"masks": np.zeros((1, 4, 4, 4)), "keypoints": None}, None, "masks .* 5 queries"),
        ({"masks": np.zeros((1, 5, 4)), "keypoints": None}, None, "masks .* 5 queries"),
        ({}, None, "missing keypoint metadata.*export it again with rfdetr-edge"),
        ({"keypoints": None}, POINTED, "gives no keypoints, but its metadata lists some"),
        ({}, numbered_schema([3]), r"does not fit a schema of \(3,\) .*wanted \(1, 5, 3, 8\)"),
        ({"keypoints": np.zeros((1, 5, 6, 7))}, POINTED, r"wanted \(1, 5, 6, 8\)"),
        ({}, numbered_schema([2, 0, 0]), "3 classes, the artifact scores 2"),
    ],
)
def test_masks_and_keypoints_that_do_not_fit_are_one_clear_error(
    changes: dict, schema: KeypointSchema | None, said: str
) -> None:
    with pytest.raises(ArtifactError, match=said):
        _found(_pointed(**changes), schema, 0.5)
