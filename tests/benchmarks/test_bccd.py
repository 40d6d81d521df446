"""The data script: a VOC tree becomes a data set that the trainer reads."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.bccd import convert, main
from rfdetr_edge import demo
from rfdetr_edge.datasets import read_dataset

SPLITS = {"train": "BloodImage_00007", "val": "BloodImage_00068", "test": "BloodImage_00157"}


def _voc(document: dict, image: dict) -> str:
    names = {category["id"]: category["name"] for category in document["categories"]}
    rows = [row for row in document["annotations"] if row["image_id"] == image["id"]]
    objects = "".join(
        f"<object><name>{names[row['category_id']]}</name><bndbox>"
        f"<xmin>{x:g}</xmin><ymin>{y:g}</ymin><xmax>{x + w:g}</xmax><ymax>{y + h:g}</ymax>"
        "</bndbox></object>"
        for row in rows
        for x, y, w, h in [row["bbox"]]
    )
    size = f"<width>{image['width']}</width><height>{image['height']}</height>"
    return f"<annotation><size>{size}</size>{objects}</annotation>"


@pytest.fixture
def source(tmp_path, photos) -> Path:
    """The three embedded photos laid out as in a clone of the source, one a split."""
    root = tmp_path / "clone" / "BCCD"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for path in demo.photo_paths():
        shutil.copy(path, root / "JPEGImages")
    for image in photos["images"]:
        name = Path(image["file_name"]).stem
        (root / "Annotations" / f"{name}.xml").write_text(_voc(photos, image))
    for split, name in SPLITS.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name}\n")
    return root.parent


def test_boxes_and_photos_are_those_of_the_source(source, tmp_path, photos):
    assert convert(source, tmp_path / "out") == {"train": 1, "valid": 1, "test": 1}
    for split, image in zip(("train", "valid", "test"), photos["images"], strict=True):
        document = json.loads((tmp_path / "out" / split / "_annotations.coco.json").read_text())
        assert document["images"] == [{**image, "id": 1}]
        assert document["categories"] == photos["categories"]
        rows = [row for row in photos["annotations"] if row["image_id"] == image["id"]]
        assert document["annotations"] == [
            {**row, "id": number, "image_id": 1} for number, row in enumerate(rows, start=1)
        ]


def test_the_trainer_reads_the_result(source, tmp_path):
    convert(source, tmp_path / "out")
    dataset = read_dataset(tmp_path / "out", "roboflow", report=None)
    assert dataset.classes.foreground() == {"RBC": 1, "WBC": 2, "Platelets": 3}
    assert dataset.test is not None
    (image,) = dataset.test.images
    assert image.path.name == "BloodImage_00157.jpg"
    assert image.boxes.shape == (len(image.labels), 4)


def test_photos_are_numbered_by_name_and_boxes_clipped(source, tmp_path):
    main_folder = source / "BCCD" / "ImageSets" / "Main"
    main_folder.joinpath("train.txt").write_text("\n".join(reversed(SPLITS.values())))
    box = "<object><name>RBC</name><bndbox>{}</bndbox></object>"
    corners = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    boxes = [(-3, 2, 20, 500), (5, 5, 5, 9)]
    source.joinpath("BCCD/Annotations/BloodImage_00007.xml").write_text(
        "<annotation><size><width>640</width><height>480</height></size>"
        + "".join(box.format(corners.format(*corner)) for corner in boxes)
        + "</annotation>"
    )
    convert(source, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "train" / "_annotations.coco.json").read_text())
    assert [row["file_name"] for row in document["images"]] == [f"{n}.jpg" for n in SPLITS.values()]
    assert document["annotations"][0]["bbox"] == [0, 2, 20, 478]
    assert [row["image_id"] for row in document["annotations"]].count(1) == 1


def _replace(file: str, text: str):
    return lambda root: root.joinpath(file).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "BCCD"), "train.txt does not exist; SOURCE must be"),
        (lambda root: (root / "BCCD/JPEGImages/BloodImage_00068.jpg").unlink(), "is listed"),
        (lambda root: (root / "BCCD/Annotations/BloodImage_00068.xml").unlink(), "does not exist"),
        (_replace("BCCD/ImageSets/Main/val.txt", ""), "lists no photos"),
        (_replace("BCCD/Annotations/BloodImage_00068.xml", "<annotation>"), "no VOC annotation"),
        (_replace("BCCD/Annotations/BloodImage_00068.xml", "<a/>"), "lacks size/width"),
        (_replace("BCCD/Annotations/BloodImage_00068.xml", "<!DOCTYPE a><a/>"), "document type"),
    ],
)
def test_a_broken_source_is_one_line_and_exit_2(source, tmp_path, capsys, damage, message):
    damage(source)
    with pytest.raises(SystemExit) as exit_:
        main([str(source), str(tmp_path / "out")])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m benchmarks.bccd: error: ")
    assert message in line


def test_a_destination_that_is_a_file_is_refused(source, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit, match="2"):
        main([str(source), str(tmp_path / "out")])
    assert "choose another folder" in capsys.readouterr().err


def test_the_command_says_what_it_wrote(source, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([str(source), str(tmp_path / "out")])
    assert capsys.readouterr().err.endswith("out: 1 train, 1 valid, 1 test photos\n")
