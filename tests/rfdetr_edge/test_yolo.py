"""YOLO layout: the same photos and boxes as in COCO give the same data set."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rfdetr_edge import demo
from rfdetr_edge.datasets import read_dataset
from rfdetr_edge.errors import InputError

NAMES = "names: [RBC, WBC, Platelets]\n"


def _write(root: Path, photos: dict, data: str = NAMES, place: str = "{split}/{kind}") -> Path:
    """A data set of the three photos in train and valid; `place`: where a split's folders are."""
    for split in ("train", "valid"):
        images, labels = (root / place.format(split=split, kind=k) for k in ("images", "labels"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True, exist_ok=True)
        for path, image in zip(demo.photo_paths(), photos["images"], strict=True):
            shutil.copy(path, images)
            lines = []
            for row in photos["annotations"]:
                if row["image_id"] == image["id"]:
                    x, y, w, h = row["bbox"]
                    centre = ((x + w / 2) / 640, (y + h / 2) / 480, w / 640, h / 480)
                    numbers = " ".join(f"{value:.9f}" for value in centre)
                    lines.append(f"{row['category_id'] - 1} {numbers}")
            (labels / f"{path.stem}.txt").write_text("\n".join(lines) + "\n\n")
    (root / "data.yaml").write_text(data)
    return root


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (NAMES, "{split}/{kind}"),
        (NAMES + "train: ../train/images\nval: ../valid/images\n", "{split}/{kind}"),
        (NAMES + "train: images/train\nval: images/valid\ntest: images/test", "{kind}/{split}"),
        (NAMES + "train: a/train\nval: ./a/valid", "a/{split}/{kind}"),
        ("nc: 3\nnames:\n  2: Platelets\n  0: RBC\n  1: WBC\n", "{split}/{kind}"),
    ],
)
def test_it_is_what_the_coco_layout_of_the_same_boxes_is(tmp_path, dataset, photos, data, place):
    expected = read_dataset(dataset, "roboflow", report=None)
    for layout in ("roboflow", "yolo"):
        root = tmp_path / layout
        read = read_dataset(_write(root, photos, data, place), layout, report=None)
        assert read.classes.names == expected.classes.names
        assert read.classes.category_ids == (0, 1, 2, None)
        assert read.test is None
        for split, other in ((read.train, expected.train), (read.valid, expected.valid)):
            assert len(split.document["annotations"]) == len(photos["annotations"])
            for image, known in zip(split.images, other.images, strict=True):
                assert image.path.name == known.path.name
                assert (image.image_id, image.source_size) == (known.image_id, known.source_size)
                np.testing.assert_allclose(image.boxes, known.boxes, atol=1e-4)
                assert image.labels.tolist() == known.labels.tolist()


def test_absolute_places_in_a_folder_named_by_a_relative_path_are_found(
    tmp_path, photos, monkeypatch
):
    data = f"{NAMES}train: {tmp_path}/a/train/images\nval: {tmp_path}/a/valid/images\n"
    _write(tmp_path, photos, data, "a/{split}/{kind}")
    monkeypatch.chdir(tmp_path)
    assert len(read_dataset(Path(), "yolo", report=None).valid.images) == 3


def test_a_byte_order_mark_of_a_label_file_does_no_harm(tmp_path, photos):
    root = _write(tmp_path, photos)
    for path in root.glob("*/labels/*.txt"):
        path.write_text("\ufeff" + path.read_text())
    assert len(read_dataset(root, "yolo", report=None).train.images[0].boxes) == 18


def test_images_beside_their_labels_are_found(tmp_path, photos):
    root = _write(tmp_path, photos, NAMES + "train: train\nval: valid", "{split}")
    assert len(read_dataset(root, "yolo", report=None).valid.images) == 3


def test_a_polygon_becomes_its_bounds(tmp_path, photos):
    root = _write(tmp_path, photos)
    name = demo.photo_paths()[0].stem
    (root / f"train/labels/{name}.txt").write_text("2 0.5 0.25 0.75 0.5 0.25 0.75 0.5 0.5")
    image = read_dataset(root, "yolo", report=None).train.images[0]
    assert image.boxes.tolist() == [[160, 120, 480, 360]]
    assert image.labels.tolist() == [2]


def test_a_polygon_is_a_mask(tmp_path, photos):
    root = _write(tmp_path, photos)
    for path in root.glob("*/labels/*.txt"):
        path.write_text("2 0.5 0.25 0.75 0.5 0.25 0.75 0.5 0.5")
    image = read_dataset(root, "yolo", report=None, task="segmentation").train.images[0]
    assert image.segmentations == ([[320, 120, 480, 240, 160, 360, 320, 240]],)


def _with_points(root: Path, points: str) -> Path:
    """Every line with these points."""
    for path in root.glob("*/labels/*.txt"):
        lines = path.read_text().split("\n")
        path.write_text("\n".join(f"{line} {points}" for line in lines if line))
    return root


@pytest.mark.parametrize(
    ("each", "points", "expected"),
    [
        (2, "0.5 0.25 0 0", [[320, 120, 2], [0, 0, 0]]),
        (2, "0 0.5 0.75 0", [[0, 240, 2], [480, 0, 2]]),
        (3, "0.5 0.25 2 0.25 0.5 1", [[320, 120, 2], [160, 240, 1]]),
        (3, "0.5 0.25 0 0 0 2", [[320, 120, 0], [0, 0, 2]]),
    ],
)
def test_a_line_with_keypoints_gives_its_box_and_its_points(
    tmp_path, photos, each, points, expected
):
    root = _write(tmp_path, photos, f"{NAMES}kpt_shape: [2, {each}]\nflip_idx: [1, 0]\n")
    read = read_dataset(_with_points(root, points), "yolo", report=None, task="keypoint")
    assert sum(len(image.boxes) for image in read.train.images) == len(photos["annotations"])
    for image in read.train.images:
        assert (image.keypoints == np.array(expected, np.float32)).all()
    boxes = read_dataset(root, "yolo", report=None)
    np.testing.assert_array_equal(boxes.train.images[0].boxes, read.train.images[0].boxes)
    assert {row["num_keypoints"] for row in read.valid.document["annotations"]} == {
        sum(v > 0 for _, _, v in expected)
    }


@pytest.mark.parametrize(
    ("flips", "pairs"),
    [("", ()), ("flip_idx: [0, 3, 2, 1]", ((1, 3),)), ("flip_idx: [1, 0, 3, 2]", ((0, 1), (2, 3)))],
)
def test_all_classes_have_the_points_of_the_data_file(tmp_path, photos, flips, pairs):
    root = _write(tmp_path, photos, f"{NAMES}kpt_shape: [4, 2]\n{flips}\n")
    _with_points(root, "0.5 0.5 " * 4)
    schema = read_dataset(root, "yolo", report=None, task="keypoint").schema
    assert schema is not None
    assert schema.counts == (4, 4, 4)
    assert schema.classes[0] == schema.classes[2]
    assert schema.classes[0].names == ("point 0", "point 1", "point 2", "point 3")
    assert schema.classes[0].flip_pairs == pairs


def test_an_image_without_a_label_file_has_no_boxes(tmp_path, photos):
    root = _write(tmp_path, photos)
    (root / f"train/labels/{demo.photo_paths()[1].stem}.txt").unlink()
    (root / "train/labels/classes.txt").write_text("RBC\nWBC\nPlatelets\n")
    counts = [len(image.boxes) for image in read_dataset(root, "yolo", report=None).train.images]
    assert [count > 0 for count in counts] == [True, False, True]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nc: 2\nnames: {0: RBC, 2: WBC}\n", r"data\.yaml:2: names must be a list, or map 0, 1"),
        ("names: []\n", r"data\.yaml:1: names must be a list"),
        ("nc: 3\n", r"data\.yaml:1: names must be a list"),
        ("names: RBC\n", r"data\.yaml:1: names must be a list"),
        (NAMES + "kpt_shape: 17\n", r"data\.yaml:2: kpt_shape must be \[K, 2\] or \[K, 3\]"),
        (NAMES + "kpt_shape: [2, 4]\n", r"data\.yaml:2: kpt_shape must be"),
        (NAMES + "kpt_shape: [2, 2]\nflip_idx: [0]\n", r"data\.yaml:3: flip_idx must name each"),
        (NAMES + "kpt_shape: [3, 2]\nflip_idx: [1, 2, 0]\n", r"data\.yaml:3: flip_idx must"),
        (NAMES + "kpt_shape: [2, 2]\nflip_idx: [1, 2]\n", r"data\.yaml:3: flip_idx must name"),
        (NAMES + "kpt_shape: [2, 2]\nflip_idx: [a, b]\n", r"data\.yaml:3: flip_idx must name"),
        ("names: [", r"data\.yaml cannot be read as YAML"),
        ("names: " + "[" * 3000, r"data\.yaml cannot be read as YAML"),
        ("names: [RBC, WBC, RBC]\n", r"data\.yaml:1: two categories have the name 'RBC'"),
    ],
)
def test_a_data_file_that_does_not_name_the_classes_is_refused(tmp_path, photos, data, message):
    with pytest.raises(InputError, match=message):
        read_dataset(_write(tmp_path, photos, data), "yolo", report=None)


def test_a_folder_without_a_data_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no data\.yaml or data\.yml"):
        read_dataset(tmp_path, "yolo", report=None)
