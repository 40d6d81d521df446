"""Masks and keypoints all the way: checkpoint, artifact, detections, equal to the trainer's."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_filled

from rfdetr_edge import Detector
from rfdetr_edge.cli import main
from rfdetr_edge.demo import photo_paths

with warnings.catch_warnings():  # supervision warns about its own dependencies on import
    warnings.simplefilter("ignore")
    pytest.importorskip("supervision")
    from trainer import RFDETRKeypointTiny, RFDETRSegTiny

PHOTO = photo_paths()[0]
THRESHOLD = 0.2  # the filled weights are sure of little


def _exported(folder: Path, variant: str, counts: tuple[int, ...]) -> tuple[str, Path]:
    checkpoint = save_filled(folder / f"{variant}.pth", variant, 4, ["a", "b", "c"], counts)
    model = folder / f"{variant}.onnx"
    images = folder / "images"
    images.mkdir()
    shutil.copy(PHOTO, images)
    gate = ("--images", str(images))
    assert main(["export", str(checkpoint), "-o", str(model), *gate]) == 0
    assert main(["verify", str(checkpoint), str(model), *gate]) == 0
    return str(checkpoint), model


def _records(model: Path, folder: Path) -> list[dict]:
    lines = folder / "found.jsonl"
    options = ["--model", str(model), "--threshold", str(THRESHOLD), "--json", str(lines)]
    assert main(["predict", str(PHOTO), *options]) == 0
    (record,) = map(json.loads, lines.read_text().splitlines())
    return record["detections"]


def test_masks_of_the_artifact_are_those_of_the_trainer(tmp_path):
    checkpoint, model = _exported(tmp_path, "seg-tiny", ())
    expected = RFDETRSegTiny(pretrain_weights=checkpoint).predict(PHOTO, threshold=THRESHOLD)
    with Detector(model) as detector:
        found = detector.predict(PHOTO, threshold=THRESHOLD)
    assert len(found) == len(expected) > 5
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-2)
    assert found.mask.shape == expected.mask.shape == (len(found), *found.source_size)
    assert np.count_nonzero(found.mask != expected.mask) <= 1e-5 * found.mask.size
    assert found.mask.any(axis=(1, 2)).sum() > 5
    assert [row["mask"] for row in _records(model, tmp_path)] == found.masks.to_rle()


def test_keypoints_of_the_artifact_are_those_of_the_trainer(tmp_path):
    checkpoint, model = _exported(tmp_path, "keypoint-tiny", (5, 0, 3))
    expected = RFDETRKeypointTiny(pretrain_weights=checkpoint).predict(PHOTO, threshold=THRESHOLD)
    with Detector(model) as detector:
        found = detector.predict(PHOTO, threshold=THRESHOLD)
    assert len(found) == len(expected) > 5
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_allclose(found.confidence, expected.detection_confidence, atol=1e-4)
    np.testing.assert_allclose(found.keypoints, expected.xy, atol=1e-2)
    np.testing.assert_allclose(found.covariance, expected.data["covariance"], rtol=1e-3)
    points = [len(row["keypoints"]) for row in _records(model, tmp_path)]
    assert points == found.keypoint_count.tolist()
    assert {0, 3, 5} >= set(points) > {5}
