"""The precision benchmark: which photos it uses for what, and the peer it is compared with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import benchmarks.precision
from benchmarks.precision import WAYS, WEIGHTS, Photos, bccd_photos, plain_int8
from exporters.calibration import calibration_set
from exporters.tflite.onnx2tf import find_onnx2tf
from rfdetr_edge import demo
from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.images import read_image

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """The embedded photos as a data set: all of them in each split."""
    root = tmp_path_factory.mktemp("bccd")
    for split in ("train", "valid", "test"):
        (root / split).mkdir()
        for photo in demo.photo_paths("detection"):
            shutil.copy(photo, root / split)
        shutil.copy(TESTS / "photos.coco.json", root / split / "_annotations.coco.json")
    return bccd_photos(root, tmp_path_factory.mktemp("scratch"))


def test_training_photos_calibrate_and_the_others_measure(photos: Photos) -> None:
    assert {path.parent.name for path in photos.calibration.images.values()} == {"train"}
    assert [Path(name).parent.name for name in photos.unseen.images] == ["test"] * 3 + ["valid"] * 3
    assert photos.unseen.annotations is not None
    merged = read_annotations(photos.unseen.annotations)
    source = read_annotations(TESTS / "photos.coco.json")
    assert len(merged["annotations"]) == 2 * len(source["annotations"])
    boxes = {entry["file_name"]: [] for entry in source["images"]}
    names = {entry["id"]: Path(entry["file_name"]) for entry in merged["images"]}
    for row in merged["annotations"]:
        if names[row["image_id"]].parent.name == "valid":
            boxes[names[row["image_id"]].name].append(row["bbox"])
    for entry in source["images"]:
        expected = [row["bbox"] for row in source["annotations"] if row["image_id"] == entry["id"]]
        assert boxes[entry["file_name"]] == expected
    assert json.dumps(merged["categories"]) == json.dumps(source["categories"])


def test_plain_int8_is_small_and_breaks_on_outliers(photos: Photos, tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(WEIGHTS["outliers"](onnx.load(demo.model_path())), source)
    outcome = plain_int8(source, output, photos)
    assert outcome.drops["bbox"].reference > 0.5
    assert output.stat().st_size < 0.4 * source.stat().st_size
    assert outcome.agreement.disagreement > 0.1


@pytest.mark.slow
def test_a_tflite_keeps_what_it_finds_despite_outliers(
    photos: Photos, onnx2tf_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [read_image(path, upright=False) for path in demo.photo_paths("detection")]
    turned = [image[::down, ::right] for image in shown for down in (1, -1) for right in (1, -1)]
    np.save(tmp_path / "calibration.npy", np.stack(turned))  # half of three would be too few
    photos = replace(photos, calibration=calibration_set(tmp_path / "calibration.npy"))
    monkeypatch.setattr(benchmarks.precision, "WEIGHTS", {"outliers": WEIGHTS["outliers"]})
    monkeypatch.setattr(benchmarks.precision, "WAYS", {"int8": WAYS["int8"]})
    onnx2tf = find_onnx2tf(onnx2tf_python)
    [row] = benchmarks.precision.measure(demo.model_path(), photos, onnx2tf)
    assert (row["weights"], row["precision"], row.get("refused")) == ("outliers", "int8", None)
    assert row["ap_fp32"] > 0.5
    assert row["drop_points"] < 1
    assert row["size"] < 0.33
