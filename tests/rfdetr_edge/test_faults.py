"""What is wrong with a data set is found before the first epoch, each fault with file and line."""

import copy
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shapes import with_shapes

from rfdetr_edge import demo
from rfdetr_edge.datasets import Dataset, read_dataset
from rfdetr_edge.errors import InputError
from rfdetr_edge.variants import Task

COCO_FILE = "_annotations.coco.json"
SECTIONS = ("images", "annotations", "categories")
FIRST = demo.photo_paths()[0]

Change = Callable[[dict], None]


def _text(document: dict) -> str:
    """The document with one entry a line, the first on line 2."""
    parts = []
    for section in SECTIONS:
        rows = ",\n".join(json.dumps(row) for row in document[section])
        parts.append(f'"{section}": [\n{rows}]')
    return "{" + ", ".join(parts) + "}"


def _line(document: dict, section: str, index: int) -> int:
    """The line of an entry in that text."""
    before = SECTIONS[: SECTIONS.index(section)]
    return 2 + index + sum(len(document[name]) for name in before)


@pytest.fixture
def read(tmp_path) -> Callable[..., Dataset]:
    """Writes both splits of a COCO data set and reads it; faults.txt is the report."""

    def write_and_read(train: dict | str, valid: dict | str, task: Task = "detection") -> Dataset:
        for split, content in (("train", train), ("valid", valid)):
            folder = tmp_path / split
            folder.mkdir(exist_ok=True)
            for path in demo.photo_paths():
                shutil.copy(path, folder)
            text = content if isinstance(content, str) else _text(content)
            (folder / COCO_FILE).write_text(text)
        return read_dataset(tmp_path, "roboflow", report=tmp_path / "faults.txt", task=task)

    return write_and_read


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize(
    ("section", "index", "fields", "message"),
    [
        ("images", 1, {"file_name": "gone.jpg"}, "there is no image file "),
        ("images", 1, {"file_name": "x" * 300}, "File name too long"),
        ("images", 1, {"width": 320}, "is 640x480 pixels, but said to be 320x480: its boxes"),
        ("images", 1, {"width": None}, "needs a width and height in whole pixels"),
        ("images", 2, {"height": "480"}, "needs a width and height in whole pixels"),
        ("images", 2, {"height": 480.5}, "needs a width and height in whole pixels"),
        ("images", 2, {"height": 0}, "needs a width and height in whole pixels"),
        ("images", 2, {"id": 1}, "id 1 is already that of another entry of 'images'"),
        ("annotations", 4, {"category_id": 77}, "has category_id 77, which 'categories' does not"),
        ("annotations", 4, {"image_id": 77}, "has image_id 77, which 'images' does not list"),
        ("annotations", 8, {"id": 1}, "id 1 is already that of another entry of 'annotations'"),
        ("annotations", 3, {"bbox": [1, 2, 3]}, "bbox of annotation 4 must be [x, y, width,"),
        ("annotations", 3, {"bbox": [1, 2, 3, math.nan]}, "bbox of annotation 4 must be"),
        ("annotations", 3, {"keypoints": [1, 2, 2]}, "has 3 keypoint numbers; its category names"),
        ("categories", 2, {"id": 1}, "id 1 is already that of another entry of 'categories'"),
    ],
)
def test_a_fatal_fault_is_named_with_file_and_line(
    read, photos, tmp_path, split, section, index, fields, message
):
    wrong = copy.deepcopy(photos)
    wrong[section][index].update(fields)
    with pytest.raises(InputError) as caught:
        read(*((wrong, photos) if split == "train" else (photos, wrong)))
    place = f"{tmp_path / split / COCO_FILE}:{_line(wrong, section, index)}: "
    (line,) = [line for line in str(caught.value).split("\n") if line.strip().startswith(place)]
    assert message in line
    assert line.strip() in (tmp_path / "faults.txt").read_text()


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ([600, -5, 90, 20], "reaches over the edge of the 640x480 image: clipped"),
        ([700, 10, 20, 20], "lies outside the 640x480 image: not learned"),
        ([10, 10, 0, 5], "has no area: not learned"),
        ([90, 10, -20, 5], "has no area: not learned"),
    ],
)
def test_a_box_that_training_can_do_without_is_only_reported(
    read, photos, tmp_path, caplog, bbox, message
):
    wrong = copy.deepcopy(photos)
    wrong["annotations"][3]["bbox"] = bbox
    with caplog.at_level(logging.WARNING):
        dataset = read(photos, wrong)
    report = (tmp_path / "faults.txt").read_text()
    place = f"{tmp_path / 'valid' / COCO_FILE}:{_line(wrong, 'annotations', 3)}: "
    assert report == f"{place}box {bbox} of annotation 4 {message}\n"
    (logged,) = caplog.messages
    assert "training works around 1 of its faults, the first: " in logged
    assert "faults.txt lists all" in logged
    boxes = [len(image.boxes) for image in dataset.valid.images]
    assert sum(boxes) == len(photos["annotations"]) - ("not learned" in message)


def test_a_part_of_a_pixel_over_the_edge_is_no_fault(read, photos, tmp_path):
    photos["annotations"][3]["bbox"] = [600, 10, 40.3, 20]
    assert read(photos, photos).train.images[0].boxes[:, 2].max() == 640
    assert not (tmp_path / "faults.txt").exists()


def test_a_broken_image_is_named_with_the_line_that_lists_it(read, photos, tmp_path):
    read(photos, photos)
    image = tmp_path / "valid" / FIRST.name
    for broken in (b"", b"no image", image.read_bytes()[:50]):
        image.write_bytes(broken)
        with pytest.raises(InputError, match=rf"\n  {tmp_path}/valid/{COCO_FILE}:2: {image} "):
            read_dataset(tmp_path, "roboflow", report=None)


def test_all_faults_of_all_splits_are_reported_at_once(read, photos, tmp_path):
    wrong = copy.deepcopy(photos)
    for row in wrong["annotations"][:12]:
        row["bbox"] = []
    wrong["annotations"][20]["bbox"] = [700, 10, 20, 20]
    bad_image = copy.deepcopy(photos)
    bad_image["images"][0]["file_name"] = "gone.jpg"
    with pytest.raises(InputError) as caught:
        read(wrong, bad_image)
    lines = str(caught.value).split("\n")
    assert lines[0].endswith("faults.txt lists all:")
    assert len(lines) == 12
    assert lines[-1] == "  and 3 more"
    report = (tmp_path / "faults.txt").read_text().split("\n")
    assert sum("bbox of annotation" in line for line in report) == 12
    assert sum("lies outside" in line for line in report) == 1
    assert sum("gone.jpg" in line for line in report) == 1


def test_odd_values_are_faults_or_ignored(read, photos, tmp_path):
    odd = copy.deepcopy(photos)
    odd["images"][0]["file_name"] = "gone \ud800\u0000.jpg"
    odd["categories"][0]["supercategory"] = ["cell"]
    with pytest.raises(InputError, match=r":2: cannot read '.*gone "):
        read(odd, photos)
    assert r"gone \ud800" in (tmp_path / "faults.txt").read_text()


def test_the_report_of_an_earlier_run_is_removed(read, photos, tmp_path):
    with pytest.raises(InputError):
        read(photos, "{")
    assert (tmp_path / "faults.txt").exists()
    with pytest.raises(InputError, match="no train split"):
        read_dataset(tmp_path, "coco", report=tmp_path / "faults.txt")
    assert not (tmp_path / "faults.txt").exists()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_unreadable_file_is_named_with_the_line_of_the_decoder(read, photos, tmp_path, split):
    broken = _text(photos).replace('"file_name"', '"file_name', 1)
    with pytest.raises(InputError) as caught:
        read(*((broken, photos) if split == "train" else (photos, broken)))
    _, *lines = str(caught.value).split("\n")
    assert len(lines) == 1  # what the other split has cannot be missed in this one
    assert lines[0].startswith(f"  {tmp_path / split / COCO_FILE}:2: cannot be read as JSON")


def test_an_empty_split_is_refused(read, photos, tmp_path):
    crowds = copy.deepcopy(photos)
    for row in crowds["annotations"]:
        row["iscrowd"] = 1
    for empty in (
        {**photos, "annotations": []},
        {**photos, "images": [], "annotations": []},
        crowds,
    ):
        with pytest.raises(InputError, match=r"coco\.json:1: the valid split has no image with"):
            read(photos, empty)
    nothing = {"images": [], "annotations": [], "categories": []}
    with pytest.raises(InputError, match=r"coco\.json:1: lists no categories"):
        read(nothing, photos)


def test_a_missing_split_is_refused(dataset, tmp_path):
    with pytest.raises(InputError, match=r"neither train/_annotations\.coco\.json .* nor data\.y"):
        read_dataset(tmp_path, "roboflow", report=None)
    shutil.copytree(dataset / "train", tmp_path / "train")
    with pytest.raises(InputError, match=r"no valid split; the splits' place is train\|valid\|"):
        read_dataset(tmp_path, "roboflow", report=None)
    with pytest.raises(InputError, match=r"no train split; .* annotations/instances_train2017"):
        read_dataset(tmp_path, "coco", report=None)


def test_two_categories_of_one_name_are_refused(read, photos, tmp_path):
    photos["categories"][2]["name"] = "WBC"
    place = f"{COCO_FILE}:{_line(photos, 'categories', 2)}: two categories have the name 'WBC'"
    with pytest.raises(InputError) as caught:
        read(photos, photos)
    assert place in str(caught.value)


def test_a_class_that_only_another_split_has_is_refused(read, photos):
    wrong = copy.deepcopy(photos)
    wrong["categories"].append({"id": 9, "name": "parasite", "supercategory": "cell"})
    assert read(photos, wrong).classes.foreground() == {"RBC": 1, "WBC": 2, "Platelets": 3}
    wrong["annotations"][0]["category_id"] = 9
    line = _line(wrong, "categories", 3)
    with pytest.raises(InputError, match=rf":{line}: category 9 'parasite' has .* no class of tra"):
        read(photos, wrong)
    swapped = copy.deepcopy(photos)
    swapped["categories"][0]["name"], swapped["categories"][1]["name"] = "WBC", "RBC"
    with pytest.raises(InputError, match="category 1 'WBC' has annotations but is no class of"):
        read(photos, swapped)


def test_a_class_without_boxes_is_only_reported(read, photos, tmp_path):
    photos["categories"].append({"id": 9, "name": "parasite", "supercategory": "cell"})
    assert len(read(photos, photos).classes) == 5
    line = _line(photos, "categories", 3)
    assert (tmp_path / "faults.txt").read_text() == (
        f"{tmp_path / 'train' / COCO_FILE}:{line}: class 'parasite' has no box in the train split, "
        "and is not learned\n"
    )


@pytest.fixture
def yolo(tmp_path) -> Path:
    """The three photos in train and valid, one box each."""
    for split in ("train", "valid"):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for number, path in enumerate(demo.photo_paths()):
            shutil.copy(path, tmp_path / split / "images")
            label = tmp_path / split / "labels" / f"{path.stem}.txt"
            label.write_text(f"{number} 0.5 0.5 0.25 0.25\n")
    (tmp_path / "data.yaml").write_text("names: [RBC, WBC, Platelets]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "a box has 5 numbers, a polygon 7, 9, 11, ...; not 4"),
        ("0 0.5 0.5 0.2 0.2 0.1", "a box has 5 numbers, a polygon 7, 9, 11, ...; not 6"),
        ("0", "a box has 5 numbers, a polygon 7, 9, 11, ...; not 1"),
        ("0 0.5 0.5 0.2 0,2", "a line holds numbers: could not convert string to float: '0,2'"),
        ("RBC 0.5 0.5 0.2 0.2", "a line holds numbers"),
        ("3 0.5 0.5 0.2 0.2", "class 3 is none of 0 to 2"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 is none of 0 to 2"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5 is none of 0 to 2"),
        ("nan 0.5 0.5 0.2 0.2", "class nan is none of 0 to 2"),
        ("0 0.5 nan 0.2 0.2", "every number must be finite"),
        ("0 0.5 0.5 0.2 inf", "every number must be finite"),
        ("0 0.5 0.5 0.2 1e300", "every number must be finite"),
    ],
)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_malformed_yolo_line_is_named_by_its_line(yolo, split, line, message):
    path = yolo / split / "labels" / f"{FIRST.stem}.txt"
    path.write_text(f"0 0.5 0.5 0.2 0.2\n\n{line}\n")
    with pytest.raises(InputError) as caught:
        read_dataset(yolo, "yolo", report=None)
    assert f"\n  {path}:3: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.9 0.5 0.4 0.2", "reaches over the edge of the 640x480 image: clipped"),
        ("0 1.5 0.5 0.2 0.2", "lies outside the 640x480 image: not learned"),
        ("0 0.5 0.5 0 0.2", "has no area: not learned"),
        ("0 0.5 0.5 0.2 -0.2", "has no area: not learned"),
    ],
)
def test_a_yolo_box_that_training_can_do_without_is_only_reported(yolo, line, message):
    path = yolo / "valid" / "labels" / f"{FIRST.stem}.txt"
    path.write_text(f"0 0.5 0.5 1 1.0000001\n{line}\n")
    dataset = read_dataset(yolo, "yolo", report=yolo / "out" / "faults.txt")
    (fault,) = (yolo / "out" / "faults.txt").read_text().splitlines()
    assert fault.startswith(f"{path}:2: box [")
    assert fault.endswith(message)
    assert len(dataset.valid.images[0].boxes) == (2 if "clipped" in message else 1)


def test_a_keypoint_count_other_than_kpt_shape_is_refused(yolo):
    (yolo / "data.yaml").write_text("names: [RBC, WBC, Platelets]\nkpt_shape: [2, 3]\n")
    for path in yolo.glob("*/labels/*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 1\n")
    read_dataset(yolo, "yolo", report=None)
    wrong = yolo / "train" / "labels" / f"{FIRST.stem}.txt"
    for line in ("0 0.5 0.5 0.2 0.2 0.4 0.4 2", "0 0.5 0.5 0.2 0.2", "0 0.5 0.5"):
        wrong.write_text(f"{line}\n")
        with pytest.raises(InputError, match=rf"{wrong}:1: kpt_shape asks for 11 numbers a line"):
            read_dataset(yolo, "yolo", report=None)


def test_labels_without_an_image_and_broken_images_are_named(yolo):
    image = yolo / "train" / "images" / FIRST.name
    data = image.read_bytes()
    for broken in (b"", data[:3], data[:50]):
        image.write_bytes(broken)
        with pytest.raises(InputError, match=rf"\n  {image}: "):
            read_dataset(yolo, "yolo", report=None)
    image.unlink()
    with pytest.raises(InputError, match=rf"labels/{FIRST.stem}\.txt:1: has no image in "):
        read_dataset(yolo, "yolo", report=None)
    label = yolo / "valid" / "labels" / f"{FIRST.stem}.txt"
    label.write_bytes(b"\xff\xfe0 0.5")
    with pytest.raises(InputError, match=rf"{label}:1: cannot be read as text"):
        read_dataset(yolo, "yolo", report=None)


def test_a_yolo_split_without_boxes_or_images_is_refused(yolo):
    for path in (yolo / "valid" / "labels").glob("*.txt"):
        path.write_text("\n")
    with pytest.raises(InputError, match="valid/images: the valid split has no image with a box"):
        read_dataset(yolo, "yolo", report=None)
    (yolo / "valid" / "labels").rename(yolo / "valid" / "label")
    with pytest.raises(InputError, match=r"valid/images: its labels should be in .*/valid/labels,"):
        read_dataset(yolo, "yolo", report=None)
    shutil.rmtree(yolo / "valid" / "images")
    with pytest.raises(InputError, match="has no valid split"):
        read_dataset(yolo, "yolo", report=None)


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize(
    ("task", "section", "index", "fields", "message"),
    [
        ("segmentation", "annotations", 4, {"segmentation": []}, "annotation 5 has no segment"),
        ("segmentation", "annotations", 3, {"segmentation": []}, "annotation 4 has no segment"),
        ("segmentation", "annotations", 4, {"segmentation": [[1, 2]]}, "segmentation of annot"),
        ("keypoint", "annotations", 1, {"keypoints": [1, 2, 3] * 3}, "keypoints of annotation 2"),
        ("keypoint", "categories", 0, {"skeleton": [[0, 1]]}, "skeleton of category 1 'RBC'"),
    ],
)
def test_what_the_task_needs_is_named_with_file_and_line(
    read, photos, tmp_path, split, task, section, index, fields, message
):
    sound = with_shapes(photos)
    wrong = copy.deepcopy(sound)
    wrong[section][index].update(fields)
    both = (wrong, sound) if split == "train" else (sound, wrong)
    with pytest.raises(InputError) as caught:
        read(*both, task)
    _, *lines = str(caught.value).split("\n")
    place = f"  {tmp_path / split / COCO_FILE}:{_line(wrong, section, index)}: "
    assert [line.startswith(place + message) for line in lines] == [True]
    assert len(read(*both).train.images) == 3  # boxes can do without


def test_a_data_set_without_what_the_task_needs_is_refused(read, photos):
    with pytest.raises(InputError, match="annotation 1 has no segmentation; add masks, or use a"):
        read(photos, photos, "segmentation")
    with pytest.raises(InputError, match=r"coco\.json:1: no class has keypoints: a keypoint vari"):
        read(photos, photos, "keypoint")
    shapes = with_shapes(photos)
    for row in shapes["annotations"]:
        row.pop("keypoints", None)
    with pytest.raises(InputError, match=r"coco\.json:1: the valid split has no labelled keypoint"):
        read(with_shapes(photos), shapes, "keypoint")


def test_keypoints_that_differ_from_trains_are_refused(read, photos):
    shapes = with_shapes(photos)
    other = copy.deepcopy(shapes)
    other["categories"][1]["keypoints"].append("centre")
    for row in other["annotations"]:
        if row["category_id"] == 2 and "keypoints" in row:
            row["keypoints"] += [1, 1, 2]
            row["num_keypoints"] += 1
    line = _line(other, "categories", 1)
    for train, valid in ((shapes, other), (other, shapes)):
        with pytest.raises(InputError, match=r"valid.*:\d+: category 2 'WBC' has other keypoints"):
            read(train, valid, "keypoint")
    with pytest.raises(InputError, match=rf"valid/{COCO_FILE}:{line}: category 2"):
        read(shapes, other, "keypoint")


def test_a_yolo_data_set_without_what_the_task_needs_is_refused(yolo):
    label = yolo / "train" / "labels" / f"{FIRST.stem}.txt"
    with pytest.raises(InputError, match=rf"{label}:1: annotation 1 has no segmentation"):
        read_dataset(yolo, "yolo", report=None, task="segmentation")
    with pytest.raises(InputError, match=r"train/images: no class has keypoints: .* by kpt_shape"):
        read_dataset(yolo, "yolo", report=None, task="keypoint")
    (yolo / "data.yaml").write_text("names: [RBC, WBC, Platelets]\nkpt_shape: [1, 3]\n")
    for path in yolo.glob("*/labels/*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2 0.4 0.4 2\n")
    label.write_text("0 0.5 0.5 0.2 0.2 0.4 0.4 0.5\n")
    with pytest.raises(InputError, match=rf"{label}:1: keypoints of annotation 1 must be marked"):
        read_dataset(yolo, "yolo", report=None, task="keypoint")
    assert read_dataset(yolo, "yolo", report=None).schema is None
