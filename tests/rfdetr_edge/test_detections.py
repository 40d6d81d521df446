import json
import sys
import warnings

import numpy as np
import pytest

from rfdetr_edge import BackendUnavailable, Detections, InputError
from rfdetr_edge.classes import coco_classes, named_classes

CELLS = named_classes("background-last", ["RBC", "WBC"], [7, 3])


def make(**changes):
    fields = {
        "xyxy": np.array([[1, 2, 11, 22], [0, 0, 4, 8], [3, 3, 5, 6]], np.float32),
        "confidence": np.array([0.75, 0.5, 0.25], np.float32),
        "class_id": np.array([1, 2, 0], np.int64),
        "classes": CELLS,
        "source_size": (30, 40),
    }
    return Detections(**{**fields, **changes})


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


def test_to_supervision_carries_names_and_source_shape():
    with warnings.catch_warnings():  # supervision warns about its own dependencies on import
        warnings.simplefilter("ignore")
        supervision = pytest.importorskip("supervision")
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
