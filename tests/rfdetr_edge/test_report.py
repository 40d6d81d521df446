import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from graphs import CELLS, metadata

from rfdetr_edge import Detections, demo, report
from rfdetr_edge.images import read_image
from rfdetr_edge.keypoint_schema import KeypointSchema, class_keypoints
from rfdetr_edge.masks import Masks
from rfdetr_edge.sources import Frame

pytest.importorskip("pycocotools")
from rfdetr_edge.evaluation import AveragePrecision
from rfdetr_edge.f1 import F1Sweep

PHOTO = demo.photo_paths()[0]
FRAME = Frame(read_image(PHOTO, upright=False), "photo", 0, None, None)
BOXES = np.array([[1, 2, 30, 40], [5, 6, 70, 80], [0, 0, 9, 9]], np.float32)
BASE = (BOXES, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 2, 1]), CELLS, (480, 640))


def lines_of(detections):
    head, *lines = report.frame_table(FRAME, detections).splitlines()
    assert head == "photo  640x480  3 detections"
    return lines


def test_a_line_of_a_mask_ends_in_its_pixels():
    logits = np.full((3, 48, 64), -1, np.float32)
    logits[0] = 1
    logits[1, 3:7, 5:10] = 1
    masks = Masks(logits, (480, 640))
    lines = lines_of(Detections(*BASE, masks=masks))
    assert [line.split()[-2:] for line in lines] == [
        ["307200", "px"],
        [str(masks.to_bool()[1].sum()), "px"],
        ["0", "px"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[:6] for line in lines] == [line.split() for line in lines_of(plain())]


def plain():
    return Detections(*BASE)


def test_a_line_of_points_says_how_many_are_sure():
    schema = KeypointSchema((class_keypoints("abc"), class_keypoints(""), class_keypoints("de")))
    confidence = np.array([[0.9, 0.5, 0.51], [0.2, 0.7, 0], [0, 0, 0]], np.float32)
    found = Detections(
        *BASE,
        schema=schema,
        keypoints=np.zeros((3, 3, 2), np.float32),
        keypoint_confidence=confidence,
        keypoint_precision=np.zeros((3, 3, 3), np.float32),
        covariance=np.zeros((3, 3, 2, 2), np.float32),
    )
    first, second, pointless = lines_of(found)
    assert first.endswith("   2/3 points")
    assert second.endswith("   1/2 points")
    assert pointless == lines_of(plain())[2]


def precision(ap):
    return AveragePrecision(ap, 0.8, 0.4, 0.7, {"RBC": ap, "WBC": math.nan}, 3)


SWEEP = F1Sweep(0.35, 0.9, 0.9, 0.9, {"RBC": 0.9, "WBC": math.nan})


def test_the_boxes_figures_are_at_the_top_and_the_others_under_their_kind():
    boxes = json.loads(report.precision_json({"bbox": precision(0.5)}, SWEEP))
    assert (boxes["ap"], boxes["per_class"]) == (0.5, {"RBC": 0.5, "WBC": None})
    both = {"bbox": precision(0.5), "segm": precision(0.25)}
    masks = json.loads(report.precision_json(both, SWEEP))
    per_class = {"RBC": 0.25, "WBC": None}
    assert masks.pop("segm") == {**asdict(precision(0.25)), "per_class": per_class}
    assert masks == boxes


@pytest.mark.parametrize(("kind", "prefix"), [("segm", "mask"), ("keypoints", "keypoint")])
def test_the_table_names_what_was_compared(kind, prefix):
    text = report.precision_table({"bbox": precision(0.5), kind: precision(0.25)}, SWEEP)
    rows = dict(line.rsplit(maxsplit=1) for line in text.splitlines()[1:])
    assert (rows["AP 50:95"], rows[f"{prefix} AP 50:95"]) == ("0.5000", "0.2500")
    assert rows[f"{prefix} AP WBC"] == "-"
    assert text.splitlines()[0] == "3 images"


def described(**changes):
    document = {**json.loads(metadata().to_json()), **changes}
    description = {"file": "a.onnx", "bytes": 1e6, "sha256": "0", "provider": "cpu"}
    text = report.artifact_text({**description, "inputs": [], "outputs": [], "metadata": document})
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_info_tells_the_mask_grid_and_the_points():
    schema = KeypointSchema(
        (class_keypoints(""), class_keypoints(("left", "right"), skeleton=((0, 1),)))
    )
    rows = described(task="keypoint", keypoints=schema.to_dict())
    assert rows["keypoints"] == "1 WBC: left, right; skeleton of 1 line"
    assert rows["trace_alpha"] == "0.2"
    assert described(task="segmentation", mask_stride=4)["mask"] == "stride 4 pixels of the input"
    assert not {"mask", "keypoints", "trace_alpha"} & set(described())
