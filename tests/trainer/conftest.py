"""What the trainer's tests share: weights, samples, and one thread for torch."""

from pathlib import Path

import pytest
import torch
from fill import fill_state_dict

from benchmarks.synth.dataset import generate
from rfdetr_edge.datasets import read_dataset
from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint_names import to_file_names
from trainer.data.transforms import Sample, read_sample
from trainer.model.rfdetr import RFDETR

# Small tensors gain nothing from more threads, and a shared machine loses by them.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> dict[str, torch.Tensor]:
    """Weights of tiny under upstream's names, 3 slots; do not change them."""
    shapes = to_file_names(RFDETR(VARIANTS["tiny"], 3).state_dict())
    filled = fill_state_dict({name: tensor.shape for name, tensor in shapes.items()})
    return {name: torch.from_numpy(array) for name, array in filled.items()}


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small synthetic photos with masks and keypoints: wrench, bolt, washer, bracket."""
    root = tmp_path_factory.mktemp("parts")
    generate(root, 6, size=(96, 128))
    return root


@pytest.fixture(scope="session")
def samples(dataset: Path) -> list[Sample]:
    """The three embedded photos with their boxes, before any augmentation."""
    train = read_dataset(dataset, "roboflow", report=None).train
    return [read_sample(labelled) for labelled in train.images]
