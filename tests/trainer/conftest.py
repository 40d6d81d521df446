"""What the trainer's tests share: real photos as a small data set, and one thread for torch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fill import fill_state_dict

from rfdetr_edge import demo
from rfdetr_edge.images import read_image
from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint_names import to_file_names
from trainer.data.coco import read_classes, read_split
from trainer.data.transforms import Sample
from trainer.model.rfdetr import RFDETR

# Small tensors gain nothing from more threads, and a shared machine loses by them.
torch.set_num_threads(1)

PHOTOS = Path(__file__).parent.parent / "photos.coco.json"


def _write_split(folder: Path, document: dict) -> Path:
    folder.mkdir(parents=True)
    for path in demo.photo_paths():
        shutil.copy(path, folder)
    (folder / "_annotations.coco.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def write_split() -> Callable[[Path, dict], Path]:
    """Writes one split: the annotation file and the three embedded photos."""
    return _write_split


@pytest.fixture
def photos() -> dict:
    """The COCO document of the three embedded photos: their 36 boxes of BCCD's test split."""
    return json.loads(PHOTOS.read_text())


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose train and valid splits are the three embedded photos."""
    root = tmp_path_factory.mktemp("dataset")
    for split in ("train", "valid"):
        _write_split(root / split, json.loads(PHOTOS.read_text()))
    return root


@pytest.fixture(scope="session")
def tiny() -> dict[str, torch.Tensor]:
    """Weights of tiny under upstream's names, 3 slots; do not change them."""
    shapes = to_file_names(RFDETR(VARIANTS["tiny"], 3).state_dict())
    filled = fill_state_dict({name: tensor.shape for name, tensor in shapes.items()})
    return {name: torch.from_numpy(array) for name, array in filled.items()}


@pytest.fixture(scope="session")
def samples(dataset: Path) -> list[Sample]:
    """The three embedded photos with their boxes, before any augmentation."""
    split = read_split(dataset, "train", read_classes(dataset))
    return [
        Sample(read_image(labelled.path, upright=False), labelled.boxes, labelled.labels)
        for labelled in split.images
    ]
