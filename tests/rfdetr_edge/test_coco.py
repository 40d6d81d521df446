"""COCO layouts: which categories become which slots, and which boxes are learned."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from shapes import POINTS, with_shapes

from rfdetr_edge import Detector, demo
from rfdetr_edge.classes import coco_classes
from rfdetr_edge.datasets import Dataset, read_dataset
from rfdetr_edge.errors import InputError
from rfdetr_edge.evaluation import average_precision
from rfdetr_edge.keypoint_schema import PERSON, ClassKeypoints
from rfdetr_edge.rasterize import rasterize

Read = Callable[..., Dataset]


@pytest.fixture
def read(tmp_path, write_split) -> Read:
    """Writes splits from documents, and reads them; valid is as train where it is not given."""

    def write_and_read(train: dict, valid: dict | None = None, **arguments: object) -> Dataset:
        write_split(tmp_path / "train", train)
        write_split(tmp_path / "valid", train if valid is None else valid)
        return read_dataset(tmp_path, "roboflow", **{"report": None, **arguments})

    return write_and_read


def test_slots_follow_the_category_ids_and_the_last_is_background(dataset):
    classes = read_dataset(dataset, "roboflow", report=None).classes
    assert classes.names == ("RBC", "WBC", "Platelets", "__background__")
    assert classes.category_ids == (1, 2, 3, None)


def test_boxes_become_corners_and_labels_slots(dataset, photos):
    split = read_dataset(dataset, "roboflow", report=None).train
    assert [image.path.name for image in split.images] == [i["file_name"] for i in photos["images"]]
    for image in split.images:
        rows = [row for row in photos["annotations"] if row["image_id"] == image.image_id]
        x, y, w, h = np.array([row["bbox"] for row in rows]).T
        np.testing.assert_array_equal(image.boxes, np.stack([x, y, x + w, y + h], axis=1))
        assert (image.boxes.dtype, image.labels.dtype) == (np.float32, np.int64)
        assert image.labels.tolist() == [row["category_id"] - 1 for row in rows]
        assert image.source_size == (480, 640)


def test_a_category_that_only_groups_others_is_left_out(read, photos):
    photos["categories"] = [
        {"id": 0, "name": "cell", "supercategory": "none"},
        *reversed(photos["categories"]),
        {"id": 8, "name": "unseen", "supercategory": "cell"},
    ]
    result = read(photos)
    assert result.classes.foreground() == {"RBC": 1, "WBC": 2, "Platelets": 3, "unseen": 8}
    assert [row["id"] for row in result.valid.document["categories"]] == [1, 2, 3, 8]


def test_a_category_with_boxes_is_a_class_even_if_others_belong_to_it(read, photos):
    photos["categories"].append({"id": 0, "name": "cell", "supercategory": "none"})
    photos["annotations"][0]["category_id"] = 0
    assert list(read(photos).classes.foreground()) == ["cell", "RBC", "WBC", "Platelets"]


def test_a_group_of_the_name_of_its_only_class_is_left_out(read, photos):
    for row in photos["annotations"]:
        row["category_id"] = 1
    photos["categories"] = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "cells", "supercategory": "cells"},
    ]
    assert read(photos).classes.foreground() == {"cells": 1}


def test_crowds_and_empty_boxes_are_dropped_and_the_rest_clipped(read, photos):
    crowd, flat, outside, wide, *_ = photos["annotations"]
    crowd["iscrowd"] = 1
    flat["bbox"] = [10, 10, 0, 5]
    outside["bbox"] = [700, 10, 20, 20]
    wide["bbox"] = [600, -5, 90, 20]
    before = sum(row["image_id"] == 1 for row in photos["annotations"])
    split = read(photos).train
    assert len(split.images[0].boxes) == before - 3
    assert split.images[0].boxes[0].tolist() == [600, 0, 640, 15]
    assert len(split.document["annotations"]) == len(photos["annotations"])


def test_the_folder_of_the_valid_split_may_be_called_val(dataset, tmp_path):
    shutil.copytree(dataset / "train", tmp_path / "train")
    shutil.copytree(dataset / "valid", tmp_path / "val")
    assert len(read_dataset(tmp_path, "roboflow", report=None).valid.images) == 3


def test_a_test_split_is_read_where_there_is_one(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    assert read_dataset(tmp_path, "roboflow", report=None).test is None
    shutil.copytree(dataset / "valid", tmp_path / "test")
    test = read_dataset(tmp_path, "roboflow", report=None).test
    assert test is not None
    assert (test.name, len(test.images)) == ("test", 3)


def test_given_names_replace_those_of_the_data_set(dataset, photos):
    names = ["red", "white", "small"]
    result = read_dataset(dataset, "roboflow", names, report=None)
    assert result.classes.foreground() == {"red": 1, "white": 2, "small": 3}
    assert [row["name"] for row in result.valid.document["categories"]] == names
    for wrong in (["red", "white"], ["red", "white", "red"]):
        with pytest.raises(InputError, match="class_names must be 3 different names"):
            read_dataset(dataset, "roboflow", wrong, report=None)


def _plain(root: Path, document: dict, stem: str = "instances") -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for path in demo.photo_paths():
            shutil.copy(path, root / split)
        (root / "annotations" / f"{stem}_{split}.json").write_text(json.dumps(document))
    return root


def test_cocos_own_folders_keep_its_ids_as_slots(tmp_path, photos):
    photos["categories"] = [
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    ]
    for row in photos["annotations"]:
        row["category_id"] = 18 if row["category_id"] == 1 else 90
    result = read_dataset(_plain(tmp_path, photos), "coco", report=None)
    assert result.classes == coco_classes()
    assert set(np.concatenate([image.labels for image in result.train.images])) == {18, 90}
    assert result.valid.images[0].path.parent == tmp_path / "val2017"
    assert result.test is None


def test_a_category_without_annotations_that_coco_does_not_have_is_no_class(tmp_path, photos):
    photos["categories"] = [{"id": i, "name": coco_classes().names[i]} for i in (1, 2, 3)]
    photos["categories"].append({"id": 100, "name": "unused"})
    result = read_dataset(_plain(tmp_path, photos), "coco", report=tmp_path / "faults.txt")
    assert [row["id"] for row in result.valid.document["categories"]] == [1, 2, 3]
    assert not (tmp_path / "faults.txt").exists()


def test_other_classes_in_cocos_folders_are_refused(tmp_path, photos):
    with pytest.raises(InputError, match=r"category 1 'RBC' .* no class of COCO \(.* roboflow\)"):
        read_dataset(_plain(tmp_path, photos), "coco", report=None)


def test_a_document_is_what_evaluation_takes(dataset, demo_detections):
    split = read_dataset(dataset, "roboflow", report=None).valid
    from_file = average_precision(dataset / "valid" / "_annotations.coco.json", demo_detections)
    assert average_precision(split.document, demo_detections) == from_file
    assert from_file.ap50 > 0.5


@pytest.fixture
def demo_detections(photos):
    """What the embedded model finds on its photos."""
    with Detector(demo.model_path()) as detector:
        found = detector.predict(demo.photo_paths(), threshold=0.0)
    return {image["id"]: one for image, one in zip(photos["images"], found, strict=True)}


def test_masks_are_those_of_cocos_own_tool(read, photos, tmp_path):
    split = read(with_shapes(photos), task="segmentation").train
    coco = COCO(tmp_path / "train" / "_annotations.coco.json")
    for image in split.images:
        rows = [row for row in coco.imgToAnns[image.image_id] if not row["iscrowd"]]
        assert len(image.segmentations) == len(image.boxes) == len(rows)
        for segmentation, row in zip(image.segmentations, rows, strict=True):
            np.testing.assert_array_equal(
                rasterize(segmentation, image.source_size), coco.annToMask(row).astype(bool)
            )
        assert image.keypoints.shape == (len(rows), 0, 3)


def test_a_box_that_is_not_learned_takes_its_mask_along(read, photos):
    shapes = with_shapes(photos)
    shapes["annotations"][0]["bbox"] = [700, 10, 20, 20]
    first = shapes["annotations"][1]["segmentation"]
    assert read(shapes, task="segmentation").train.images[0].segmentations[0] == first


@pytest.mark.parametrize("task", ["detection", "keypoint"])
def test_masks_are_read_for_segmentation_only(read, photos, task):
    shapes = with_shapes(photos)
    for row in shapes["annotations"]:
        row["segmentation"] = [[1, 2, 3]]
    assert {image.segmentations for image in read(shapes, task=task).train.images} == {()}


def test_keypoints_are_those_of_cocos_own_tool(read, photos, tmp_path):
    result = read(with_shapes(photos), task="keypoint")
    coco = COCO(tmp_path / "train" / "_annotations.coco.json")
    marks = []
    for image in result.train.images:
        rows = [row for row in coco.imgToAnns[image.image_id] if not row["iscrowd"]]
        assert image.keypoints.shape == (len(rows), 3, 3)
        assert image.keypoints.dtype == np.float32
        for points, row in zip(image.keypoints, rows, strict=True):
            stated = np.zeros((3, 3), np.float32)
            known = np.array(row.get("keypoints", []), np.float32).reshape(-1, 3)
            stated[: len(known)] = known
            np.testing.assert_array_equal(points, stated)
        marks += image.keypoints[..., 2].ravel().tolist()
    assert set(marks) == {0, 1, 2}


def test_the_schema_is_that_of_the_classes(read, photos):
    shapes = with_shapes(photos)
    schema = read(shapes, task="keypoint").schema
    assert schema is not None
    assert schema.counts == (3, 2, 0)
    assert [list(one.names) for one in schema.classes] == [
        *(p["keypoints"] for p in POINTS.values()),
        [],
    ]
    assert [one.flip_pairs for one in schema.classes] == [((0, 2),), ((0, 1),), ()]
    assert schema.classes[0].skeleton == ((0, 1), (1, 2))


def test_the_points_of_a_class_follow_its_slot(read, photos):
    shapes = with_shapes(photos)
    shapes["categories"].reverse()
    shapes["categories"].append({"id": 0, "name": "dust"})
    schema = read(shapes, task="keypoint").schema
    assert schema is not None
    assert schema.counts == (0, 3, 2, 0)


def test_keypoints_are_read_for_their_task_only(read, photos):
    result = read(with_shapes(photos))
    assert result.schema is None
    assert {image.keypoints.shape[1:] for image in result.train.images} == {(0, 3)}


def test_cocos_own_folders_have_keypoints_in_files_of_their_own(tmp_path, photos):
    photos["categories"] = [
        {
            "id": 1,
            "name": "person",
            "supercategory": "person",
            "keypoints": list(PERSON.names),
            "skeleton": [[a + 1, b + 1] for a, b in PERSON.skeleton],
        }
    ]
    for row in photos["annotations"]:
        x, y, w, h = row["bbox"]
        row["category_id"], row["keypoints"] = 1, [x + w / 2, y + h / 2, 2] * 17
    root = _plain(tmp_path, photos, "person_keypoints")
    result = read_dataset(root, "coco", report=None, task="keypoint")
    assert result.schema is not None
    assert result.schema.classes == (ClassKeypoints(), PERSON)
    assert {image.keypoints.shape[1] for image in result.train.images} == {17}
    with pytest.raises(InputError, match=r"no train split; .* annotations/instances_train2017"):
        read_dataset(root, "coco", report=None, task="segmentation")
