"""The embedded artifacts are the ones their cards describe."""

from pathlib import Path

import pytest

from rfdetr_edge import Detector, demo
from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.evaluation import detect_annotated, every_precision
from rfdetr_edge.variants import VARIANTS

TESTS = Path(__file__).parents[1]
CELLS = {"RBC": 1, "WBC": 2, "Platelets": 3}
PARTS = {"wrench": 1, "bolt": 2, "washer": 3, "bracket": 4}


@pytest.mark.parametrize(
    ("task", "document", "kind", "least"),
    [
        ("detection", "photos.coco.json", "bbox", 0.8),
        ("segmentation", "parts.coco.json", "segm", 0.8),
        ("keypoint", "parts.coco.json", "keypoints", 0.5),
    ],
)
def test_it_finds_what_is_on_the_embedded_photos(task, document, kind, least):
    folder = demo.photo_paths(task)[0].parent
    annotations = read_annotations(TESTS / document, task)
    with Detector(demo.model_path(task)) as detector:
        found = detect_annotated(detector, annotations, folder, lambda: None)
    result = every_precision(annotations, found)[kind]
    assert result.images == 3
    assert result.ap50 > least


@pytest.mark.parametrize(
    ("task", "classes"), [("detection", CELLS), ("segmentation", PARTS), ("keypoint", PARTS)]
)
def test_its_metadata_is_complete(task, classes):
    with Detector(demo.model_path(task)) as detector:
        metadata = detector.metadata
    assert VARIANTS[metadata.variant].task == metadata.task == task
    assert metadata.classes.foreground() == classes
    assert metadata.input.antialias
    assert metadata.provenance.verification == "passed"


@pytest.mark.parametrize("task", demo.EMBEDDED)
def test_it_comes_with_its_card_and_stays_small(task):
    path = demo.model_path(task)
    assert path.with_suffix(".md").is_file()
    assert path.stat().st_size < 20e6


def test_the_photos_of_cells_come_with_their_licence():
    assert (demo.model_path().parent / "LICENSE-BCCD").is_file()
