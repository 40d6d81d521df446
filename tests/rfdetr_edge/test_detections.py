import json
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from rfdetr_edge import BackendUnavailable, Detections, InputError, KeypointSchema, Masks
from rfdetr_edge.classes import coco_classes, named_classes
from rfdetr_edge.keypoint_schema import class_keypoints

CELLS = named_classes("background-last", ["RBC", "WBC"], [7, 3])
SCHEMA = KeypointSchema((class_keypoints(["left", "right"]), class_keypoints(["only"])))


def make(**changes):
    fields = {
        "xyxy": np.array([[1, 2, 11, 22], [0, 0, 4, 8], [3, 3, 5, 6]], np.float32),
        "confidence": np.array([0.75, 0.5, 0.25], np.float32),
        "class_id": np.array([1, 2, 0], np.int64),
        "classes": CELLS,
        "source_size": (30, 40),
    }
    return Detections(**{**fields, **changes})


def with_masks():
    logits = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    return make(masks=Masks(logits, (30, 40)))


def with_keypoints():
    """Rows of the second class, which has one point, of background and of the first, with two."""
    covariance = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)
    covariance[2, 1] = np.nan
    return make(
        schema=SCHEMA,
        keypoints=np.arange(12, dtype=np.float32).reshape(3, 2, 2),
        keypoint_confidence=np.array([[0.5, 0], [0, 0], [0.25, 0.75]], np.float32),
        keypoint_precision=np.zeros((3, 2, 3), np.float32),
        covariance=covariance,
    )


@pytest.mark.parametrize(
    ("field", "array"),
    [
        ("xyxy", np.zeros((3, 5), np.float32)),
        ("xyxy", np.zeros((3, 4), np.float64)),
        ("confidence", np.zeros(2, np.float32)),
        ("confidence", np.zeros((3, 1), np.float32)),
        ("class_id", np.zeros(3, np.int32)),
    ],
)
def test_arrays_of_another_shape_or_dtype_are_refused(field, array):
    with pytest.raises(InputError, match=rf"Detections\.{field} must have shape .* not .*"):
        make(**{field: array})


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_class_id_outside_the_table_is_refused(slot):
    with pytest.raises(InputError, match="0 to 2"):
        make(class_id=np.array([0, 1, slot], np.int64))


def test_rows_are_selected_by_mask_slice_index_and_number():
    detections = make()
    for rows, kept in (
        (detections.confidence > 0.4, [0, 1]),
        (slice(1, None), [1, 2]),
        (np.array([2, 0]), [2, 0]),
        ([], []),
        (-1, [2]),
        (np.int64(1), [1]),
    ):
        selected = detections[rows]
        np.testing.assert_array_equal(selected.xyxy, detections.xyxy[kept])
        np.testing.assert_array_equal(selected.class_id, detections.class_id[kept])
        assert (len(selected), selected.source_size) == (len(kept), (30, 40))


@pytest.mark.parametrize("rows", [slice(1, None), [2, 0], [], np.array([True, False, True]), -1])
def test_masks_and_keypoints_follow_their_rows(rows):
    masked, pointed = with_masks(), with_keypoints()
    index = [rows] if isinstance(rows, int) else rows
    np.testing.assert_array_equal(masked[rows].masks.logits, masked.masks.logits[index])
    np.testing.assert_array_equal(masked[rows].mask, masked.mask[index])
    for name in ("keypoints", "keypoint_confidence", "keypoint_precision", "covariance"):
        np.testing.assert_array_equal(
            getattr(pointed[rows], name), getattr(pointed, name)[index], err_msg=name
        )
    assert pointed[rows].schema is SCHEMA
    assert (masked[rows].keypoints, pointed[rows].mask) == (None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keypoints": None}, "all together .* keypoints and schema differ"),
        ({"schema": None}, "keypoints and schema differ"),
        ({"covariance": np.zeros((3, 2, 3), np.float32)}, r"covariance .* \(3, 2, 2, 2\)"),
        ({"keypoints": np.zeros((3, 2, 2))}, "keypoints .* float32, not .* float64"),
        ({"masks": Masks(np.zeros((2, 4, 4), np.float32), (30, 40))}, "3 masks of .* not 2 of"),
        ({"masks": Masks(np.zeros((3, 4, 4), np.float32), (40, 30))}, r"not 3 of \(40, 30\)"),
    ],
)
def test_masks_and_keypoints_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        replace(with_keypoints(), **changes)


def test_each_row_has_the_points_of_its_class():
    assert with_keypoints().keypoint_count.tolist() == [1, 0, 2]
    assert make().keypoint_count.tolist() == [0, 0, 0]


def test_masks_and_keypoints_are_in_the_documented_json():
    masked, pointed = with_masks(), with_keypoints()
    rows = json.loads(json.dumps(masked.to_dict(), allow_nan=False))["detections"]
    assert [row["mask"] for row in rows] == masked.masks.to_rle()
    rows = json.loads(json.dumps(pointed.to_dict(), allow_nan=False))["detections"]
    assert [row["keypoints"] for row in rows] == [[[0, 1, 0.5]], [], [[8, 9, 0.25], [10, 11, 0.75]]]
    assert [row["covariance"] for row in rows] == [[[0, 1, 3]], [], [[16, 17, 19], None]]


def test_masks_and_keypoints_are_written_to_coco():
    masked = with_masks()
    rle = masked.masks.to_rle()
    assert [row["segmentation"] for row in masked.to_coco(1)] == [rle[0], rle[2]]
    rows = with_keypoints().to_coco(1)
    assert [row["keypoints"] for row in rows] == [[0, 1, 1], [8, 9, 1, 10, 11, 1]]
    assert [row["category_id"] for row in rows] == [3, 7]


def test_iterating_gives_one_row_at_a_time():
    assert [row.confidence.tolist() for row in make()] == [[0.75], [0.5], [0.25]]


def test_class_names_follow_the_table_and_filter_rows():
    detections = make()
    assert detections.class_name.tolist() == ["WBC", "__background__", "RBC"]
    assert detections[detections.class_name == "RBC"].class_id.tolist() == [0]
    coco = make(classes=coco_classes(), class_id=np.array([0, 90, 1], np.int64))
    assert coco.class_name.tolist() == ["", "toothbrush", "person"]


def test_to_dict_is_the_documented_json():
    assert json.loads(json.dumps(make()[:1].to_dict())) == {
        "width": 40,
        "height": 30,
        "detections": [
            {"xyxy": [1, 2, 11, 22], "confidence": 0.75, "class_id": 1, "class_name": "WBC"}
        ],
    }


def test_to_coco_writes_the_data_sets_ids_and_leaves_out_background():
    assert make().to_coco(image_id=9) == [
        {"image_id": 9, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.75},
        {"image_id": 9, "category_id": 7, "bbox": [3, 3, 2, 3], "score": 0.25},
    ]


def test_no_detections_convert_to_empty_results():
    nothing = make()[:0]
    assert nothing.xyxy.shape == (0, 4)
    assert (
        nothing.to_coco(1) == nothing.to_dict()["detections"] == nothing.class_name.tolist() == []
    )


@pytest.fixture
def supervision():
    with warnings.catch_warnings():  # supervision warns about its own dependencies on import
        warnings.simplefilter("ignore")
        return pytest.importorskip("supervision")


def test_to_supervision_carries_masks(supervision):
    masked = with_masks()
    converted = masked.to_supervision()
    assert isinstance(converted, supervision.Detections)
    np.testing.assert_array_equal(converted.mask, masked.masks.to_bool())
    assert masked[:0].to_supervision().mask.shape == (0, 30, 40)


def test_to_supervision_gives_key_points_with_the_documented_fields(supervision):
    pointed = with_keypoints()
    converted = pointed.to_supervision()
    assert isinstance(converted, supervision.KeyPoints)
    np.testing.assert_array_equal(converted.xy, pointed.keypoints)
    np.testing.assert_array_equal(converted.keypoint_confidence, pointed.keypoint_confidence)
    np.testing.assert_array_equal(converted.detection_confidence, pointed.confidence)
    np.testing.assert_array_equal(converted.class_id, pointed.class_id)
    assert converted.visible.tolist() == [[True, False], [False, False], [True, True]]
    np.testing.assert_array_equal(converted.data["xyxy"], pointed.xyxy)
    np.testing.assert_array_equal(converted.data["covariance"], pointed.covariance)
    assert converted.data["keypoint_precision_cholesky"].shape == (3, 2, 3)
    assert converted.data["class_name"].tolist() == ["WBC", "__background__", "RBC"]
    assert converted.data["source_shape"].tolist() == [[30, 40]] * 3
    nothing = pointed[:0].to_supervision()
    assert (len(nothing), nothing.xy.shape, "covariance" in nothing.data) == (0, (0, 2, 2), False)


def test_to_supervision_carries_names_and_source_shape(supervision):
    converted = make().to_supervision()
    assert isinstance(converted, supervision.Detections)
    np.testing.assert_array_equal(converted.xyxy, make().xyxy)
    assert converted.data["class_name"].tolist() == ["WBC", "__background__", "RBC"]
    assert converted.data["source_shape"].tolist() == [[30, 40]] * 3
    assert len(make()[:0].to_supervision()) == 0


def test_a_missing_supervision_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)  # what Python does for a missing module
    with pytest.raises(BackendUnavailable, match=r"rfdetr-edge\[supervision\]"):
        make().to_supervision()
