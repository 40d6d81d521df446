"""The embedded artifact is the one its card describes."""

from pathlib import Path

import pytest

from rfdetr_edge import Detector, demo
from rfdetr_edge.evaluation import average_precision, detect_annotated

ANNOTATIONS = Path(__file__).parent.parent / "photos.coco.json"


@pytest.fixture(scope="module")
def detector():
    with Detector(demo.model_path()) as opened:
        yield opened


def test_it_finds_the_cells_of_the_embedded_photos(detector):
    folder = demo.photo_paths()[0].parent
    found = detect_annotated(detector, ANNOTATIONS, folder, lambda: None)
    result = average_precision(ANNOTATIONS, found)
    assert result.ap50 > 0.8
    assert result.ap > 0.5


def test_its_metadata_is_complete(detector):
    metadata = detector.metadata
    assert metadata.variant == "tiny"
    assert metadata.classes.foreground() == {"RBC": 1, "WBC": 2, "Platelets": 3}
    assert metadata.input.antialias
    assert metadata.provenance.verification == "passed"


def test_it_comes_with_its_card_and_licence_and_stays_small():
    folder = demo.model_path().parent
    assert (folder / "MODEL_CARD.md").is_file()
    assert (folder / "LICENSE-BCCD").is_file()
    assert demo.model_path().stat().st_size < 20e6
