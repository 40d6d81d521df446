"""Data loading: which image, at which size, with which random numbers, in which batch."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import read_image
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import preprocess
from trainer.config import TrainConfig
from trainer.data.coco import CocoSplit, LabelledImage, read_split
from trainer.data.paste import PasteBank
from trainer.data.transforms import Sample, augment
from trainer.targets import Target


class Draw(NamedTuple):
    """One item of an epoch: which image, the side of the square it becomes, its own seed."""

    image: int
    side: int
    seed: int


class Batch(NamedTuple):
    """images: (B, 3, H, W) normalised float32; one Target each."""

    images: Tensor
    targets: list[Target]


class EpochSampler(Sampler[Draw]):
    """A fresh permutation every epoch, at that epoch's resolution.

    Everything follows from the run's seed and the epoch, so neither the number of workers nor a
    resumed run changes what is drawn. Lightning calls `set_epoch`.
    """

    def __init__(self, length: int, config: TrainConfig) -> None:
        self._length = length
        self._config = config
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses what the next iteration draws."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self._config.seed, self._epoch))
        side = self._config.side_at(self._epoch)
        for index in rng.permutation(self._length).tolist():
            yield Draw(index, side, int(rng.integers(2**63)))


class TrainingImages(Dataset[tuple[Tensor, Target]]):
    """Augmented images of the train split, addressed by `Draw`."""

    def __init__(self, split: CocoSplit, config: TrainConfig) -> None:
        self._images = split.images
        self._config = config
        self._bank = PasteBank([_sample(image) for image in split.images])

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target]:
        rng = np.random.default_rng(draw.seed)
        labelled = self._images[draw.image]
        sample = _sample(labelled)
        if rng.random() < self._config.paste_probability:
            sample = self._bank.paste(sample, rng)
        return _item(augment(sample, rng), labelled, self._config, draw.side)


class ValidationImages(Dataset[tuple[Tensor, Target]]):
    """Images of a split exactly as the device sees them, by position."""

    def __init__(self, split: CocoSplit, config: TrainConfig) -> None:
        self._images = split.images
        self._config = config

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        labelled = self._images[index]
        return _item(_sample(labelled), labelled, self._config, self._config.side)


def _sample(labelled: LabelledImage) -> Sample:
    image = read_image(labelled.path, upright=False)
    if image.shape[:2] != labelled.source_size:
        height, width = labelled.source_size
        raise InputError(
            f"{labelled.path} is {image.shape[1]}x{image.shape[0]} pixels, but its annotations say "
            f"{width}x{height}: its boxes belong to another picture"
        )
    return Sample(image, labelled.boxes, labelled.labels)


def _item(
    sample: Sample, labelled: LabelledImage, config: TrainConfig, side: int
) -> tuple[Tensor, Target]:
    height, width = sample.image.shape[:2]
    tensor = preprocess(sample.image, InputSpec((side, side), antialias=config.antialias))
    corners = sample.boxes / np.array([width, height, width, height], np.float32)
    centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    target = Target(
        boxes=torch.from_numpy(np.concatenate([centre, size], axis=1)),
        labels=torch.from_numpy(sample.labels),
        image_id=labelled.image_id,
        source_size=labelled.source_size,
    )
    return torch.from_numpy(tensor), target


def collate(items: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Stacks the images and lists the targets."""
    images, targets = zip(*items, strict=True)
    return Batch(torch.stack(images), list(targets))


class DetectionData(pl.LightningDataModule):
    """Train and valid splits of a data set."""

    def __init__(self, config: TrainConfig, classes: ClassTable) -> None:
        super().__init__()
        self._config = config
        self.train_split = read_split(config.dataset, "train", classes)
        self.valid_split = read_split(config.dataset, "valid", classes)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Target]]:
        """Shuffled, augmented batches; the last incomplete one is left out."""
        batch_size = min(self._config.batch_size, len(self.train_split.images))
        return self._loader(
            TrainingImages(self.train_split, self._config),
            batch_size=batch_size,
            sampler=EpochSampler(len(self.train_split.images), self._config),
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Target]]:
        """The valid split in order."""
        images = ValidationImages(self.valid_split, self._config)
        return self._loader(images, batch_size=self._config.batch_size)

    def _loader(
        self, images: Dataset[tuple[Tensor, Target]], **options: object
    ) -> DataLoader[tuple[Tensor, Target]]:
        # A worker is a fork, and a fork of OpenCV's thread pool waits for ever: end the pool first.
        cv2.setNumThreads(1)
        return DataLoader(
            images, num_workers=self._config.num_workers, collate_fn=collate, **options
        )
