"""Data loading: which image, at which size, with which random numbers, in which batch.

The sampler decides it from the run's seed and the epoch, so neither the number of workers nor a
resumed run changes what is drawn, and two processes with batch B draw what one with batch 2 B does.
An image becomes a square of its batch's side at once, where upstream resizes finished batches:
pixels are interpolated once, and with antialias. A mask takes the nearest pixel's value.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from rfdetr_edge.datasets import Dataset, LabelledImage, Split
from rfdetr_edge.errors import InputError
from rfdetr_edge.keypoint_schema import KeypointSchema
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import preprocess
from rfdetr_edge.rasterize import rasterize
from rfdetr_edge.variants import Task
from trainer.config import ModelConfig, TrainConfig
from trainer.data.augmentation import DEFAULT
from trainer.data.paste import PasteBank
from trainer.data.transforms import Sample, augment, jitter_scale, mirror_swaps, read_sample
from trainer.ranks import place
from trainer.targets import Target

_FEWEST_STEPS = 5  # optimizer steps an epoch: smaller sets are drawn from with replacement


class Draw(NamedTuple):
    """One item: which image, the side of the square it becomes, its seed (None: as it is)."""

    image: int
    side: int
    seed: int | None


class Batch(NamedTuple):
    """images: (B, 3, H, W) normalised float32; one Target each."""

    images: Tensor
    targets: list[Target]


def scales(resolution: int, block: int, *, expanded: bool) -> list[int]:
    """The ascending sides of multi-scale training around a resolution: at least two blocks.

    expanded: five blocks down and up, else three down and four up (training.md section 5).
    """
    down, up = (5, 5) if expanded else (3, 4)
    middle = resolution // block
    return [count * block for count in range(max(middle - down, 2), middle + up + 1)]


class EpochSampler(Sampler[Draw]):
    """One rank's share of an epoch: of every batch of all ranks, its slice of batch_size items.

    length: images of the split. place: (rank, ranks). The last incomplete batch is left out; an
    epoch of under five optimizer steps gets five, drawn with replacement.
    """

    def __init__(
        self, length: int, config: TrainConfig, model: ModelConfig, place: tuple[int, int] = (0, 1)
    ) -> None:
        self._config, self._model, self._length, self._epoch = config, model, length, 0
        self._batch_size = int(config.batch_size)  # fit has replaced "auto"
        self._rank, self._together = place[0], self._batch_size * place[1]
        self._batches = max(length // self._together, _FEWEST_STEPS * config.grad_accum_steps)

    def set_epoch(self, epoch: int) -> None:
        """Chooses what the next iteration draws, from 0. Lightning calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches * self._batch_size

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self._config.seed, self._epoch))
        count, images = self._batches * self._together, rng.permutation(self._length)
        if count > self._length:
            images = rng.integers(self._length, size=count)
        seeds = rng.integers(2**63, size=count)
        sides = self._sides()
        for batch in range(self._batches):
            side = random.Random(self._epoch * self._batches + batch).choice(sides)
            first = batch * self._together + self._rank * self._batch_size
            for item in range(first, first + self._batch_size):
                yield Draw(int(images[item]), side, int(seeds[item]))

    def _sides(self) -> list[int]:
        config, side = self._config, self._model.resolution
        if config.warm_resolution and self._epoch < config.warm_fraction * config.epochs:
            side = config.warm_resolution
        if not config.scales_vary:
            return [side]
        return scales(side, self._model.row.block_size, expanded=config.expanded_scales)


class Images(TorchDataset[tuple[Tensor, Target]]):
    """A split's images as tensors: augmented, or as the device sees them, as each `Draw` says."""

    def __init__(
        self, split: Split, config: TrainConfig, task: Task, schema: KeypointSchema | None
    ) -> None:
        self._images, self._config, self._task = split.images, config, task
        self._augmentation = DEFAULT if config.aug_config is None else config.aug_config
        self._bank = PasteBank(split.images) if self._augmentation.CopyPaste.p else None
        self._swaps = mirror_swaps(schema) if schema else None

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target]:
        labelled = self._images[draw.image]
        sample = read_sample(labelled, self._task, self._swaps)
        if draw.seed is not None:
            rng = np.random.default_rng(draw.seed)
            if self._bank is not None and rng.random() < self._augmentation.CopyPaste.p:
                sample = self._bank.paste(sample, rng)
            if self._config.scale_jitter:
                sample = jitter_scale(sample, rng)
            sample = augment(sample, self._augmentation, rng)
        spec = InputSpec((draw.side, draw.side), self._config.antialias)
        tensor = torch.from_numpy(preprocess(sample.image, spec))
        return tensor, _target(sample, labelled, draw.side)


def _target(sample: Sample, labelled: LabelledImage, side: int) -> Target:
    """What a sample teaches when its image is a square of this side."""
    wh = np.array(sample.image.shape[1::-1], np.float32)
    low, high = torch.from_numpy(sample.boxes.reshape(-1, 2, 2) / wh).unbind(1)
    cxcywh = torch.cat([(low + high) / 2, high - low], dim=1)
    labels = torch.from_numpy(sample.labels)
    masks = points = None
    if sample.pixels is not None:
        # the pixels at the centres of the square's; (2 i + 1) / 2 is the centre of pixel i
        nearest = [(2 * np.arange(side) + 1) * n // (2 * side) for n in sample.pixels.shape]
        pixels, size = sample.pixels[np.ix_(*nearest)], labelled.source_size
        found = [rasterize(one, size).take(pixels) for one in sample.segmentations]
        masks = torch.from_numpy(np.array(found, np.bool_).reshape(-1, side, side))
    if sample.keypoints.shape[1]:
        points = torch.from_numpy(sample.keypoints / np.array([*wh, 1], np.float32))
    return Target(cxcywh, labels, labelled.image_id, labelled.source_size, masks, points)


def collate(items: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Stacks the images and lists the targets, whose boxes are views of one tensor, as is the rest.

    Raises InputError in a worker that gets no shared memory. It is asked for here because the
    queue to the main process would ask in a thread, where a failure is printed and the run hangs.
    """
    joined = [torch.stack([image for image, _ in items])]
    counts = [len(target.labels) for _, target in items]
    columns: list[Sequence[Any]] = []
    for parts in zip(*(target for _, target in items), strict=True):
        if isinstance(parts[0], Tensor):
            joined.append(torch.cat(parts))
            columns.append(joined[-1].split(counts))
        else:
            columns.append(parts)
    if get_worker_info() is not None:
        try:
            for tensor in joined:
                tensor.share_memory_()
        except RuntimeError as error:
            text = f"no shared memory for a data worker; use num_workers=0 ({error})"
            raise InputError(text) from None
    return Batch(joined[0], [Target(*row) for row in zip(*columns, strict=True)])


class DetectionData(pl.LightningDataModule):
    """Loaders that give each rank its own share, so Lightning must not replace their samplers.

    Raises InputError for CopyPaste where masks or keypoints are learned.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig, dataset: Dataset) -> None:
        super().__init__()
        self._config, self._model, self._dataset = config, model, dataset
        task, augmentation = model.row.task, config.aug_config
        if task != "detection" and augmentation is not None and augmentation.CopyPaste.p:
            raise InputError(
                f"aug_config: CopyPaste pastes boxes only, and {model.variant} learns more; set "
                "its p to 0"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented batches."""
        length = len(self._dataset.train.images)
        sampler = EpochSampler(length, self._config, self._model, place())
        return self._loader(self._dataset.train, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """The valid split in order; over all ranks each image once."""
        return self._in_order(self._dataset.valid)

    def test_dataloader(self) -> DataLoader[Any]:
        """As `val_dataloader`, of the test split. Raises InputError when there is none."""
        if self._dataset.test is None:
            raise InputError(f"{self._dataset.root} has no test split")
        return self._in_order(self._dataset.test)

    def _in_order(self, split: Split) -> DataLoader[Any]:
        (rank, ranks), side = place(), self._model.resolution
        draws = [Draw(image, side, None) for image in range(rank, len(split.images), ranks)]
        return self._loader(split, draws)

    def _loader(self, split: Split, sampler: Sampler[Draw] | Sequence[Draw]) -> DataLoader[Any]:
        # A worker is a fork, and a fork of OpenCV's thread pool waits for ever: end the pool first.
        cv2.setNumThreads(1)
        return DataLoader(
            Images(split, self._config, self._model.row.task, self._dataset.schema),
            batch_size=int(self._config.batch_size),
            sampler=sampler,
            num_workers=self._config.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
        )
