"""Which image is drawn when and at which size, on how many ranks, and what the network gets."""

import json
import resource
import shutil
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import with_shapes
from torch import distributed

from rfdetr_edge.datasets import Dataset, read_dataset
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import read_image
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import preprocess
from rfdetr_edge.rasterize import rasterize
from rfdetr_edge.variants import VARIANTS, Task
from trainer.config import ModelConfig, TrainConfig, model_config
from trainer.data.module import DetectionData, Draw, EpochSampler, Images, scales

pytestmark = pytest.mark.filterwarnings(
    # from Python 3.12 on: a loading worker is a fork of a process that has torch's threads
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)


def _config(**settings: object) -> TrainConfig:
    return TrainConfig(**{"dataset_dir": "data", "multi_scale": "off", **settings})


def _model(resolution: int = 64) -> ModelConfig:
    return model_config("tiny", resolution=resolution)


@pytest.fixture(scope="module")
def read(dataset: Path) -> Dataset:
    """The three photos as train and valid split."""
    return read_dataset(dataset, "roboflow", report=None)


def _images(read: Dataset, **settings: object) -> Images:
    return Images(read.train, _config(**settings), "detection", None)


def _sampler(length: int = 100, batch_size: int = 4, **settings: object) -> EpochSampler:
    return EpochSampler(length, _config(batch_size=batch_size, **settings), _model())


def _epoch(sampler: EpochSampler, number: int) -> list[Draw]:
    sampler.set_epoch(number)
    draws = list(sampler)
    assert len(draws) == len(sampler)
    return draws


def test_an_epoch_draws_every_image_once_and_differs_from_the_next():
    sampler = _sampler(50, 2)
    first, second = _epoch(sampler, 0), _epoch(sampler, 1)
    assert sorted(draw.image for draw in first) == list(range(50))
    assert first == _epoch(_sampler(50, 2), 0)
    assert first != second
    assert first != _epoch(_sampler(50, 2, seed=43), 0)
    assert len({draw.seed for draw in first + second}) == 100


def test_the_last_incomplete_batch_is_left_out():
    draws = _epoch(_sampler(103, 4), 0)
    assert len(draws) == 100
    assert max(Counter(draw.image for draw in draws).values()) == 1


@pytest.mark.parametrize(
    ("length", "batch_size", "accumulated", "items"),
    [(3, 4, 1, 20), (39, 4, 2, 40), (40, 4, 2, 40), (19, 4, 1, 20), (47, 4, 2, 44)],
)
def test_a_small_set_gives_five_optimizer_steps_an_epoch(length, batch_size, accumulated, items):
    draws = _epoch(_sampler(length, batch_size, grad_accum_steps=accumulated), 0)
    assert len(draws) == items
    assert {draw.image for draw in draws} <= set(range(length))
    repeated = max(Counter(draw.image for draw in draws).values()) > 1
    assert repeated == (length < 5 * batch_size * accumulated)


@pytest.mark.parametrize("length", [3, 50, 103])
def test_ranks_together_draw_what_one_rank_with_the_batch_of_all_draws(length):
    one, model = _config(multi_scale="per-batch", batch_size=6), _model(256)
    third = one.model_copy(update={"batch_size": 2})
    alone = EpochSampler(length, one, model)
    ranks = [EpochSampler(length, third, model, (rank, 3)) for rank in range(3)]
    for epoch in (0, 4):
        expected = _epoch(alone, epoch)
        shares = [_epoch(sampler, epoch) for sampler in ranks]
        assert {len(share) for share in shares} == {len(expected) // 3}
        joined = [
            draw
            for first in range(0, len(shares[0]), 2)
            for share in shares
            for draw in share[first : first + 2]
        ]
        assert joined == expected


def test_the_resolution_is_small_at_first():
    config = _config(epochs=10, warm_resolution=64, warm_fraction=0.3)
    sampler = EpochSampler(8, config, _model(96))
    sides = [{draw.side for draw in _epoch(sampler, epoch)} for epoch in range(10)]
    assert sides == [{64}] * 3 + [{96}] * 7


def test_the_sides_of_multi_scale_are_upstreams():
    assert scales(384, 32, expanded=True) == [224 + 32 * step for step in range(11)]
    assert scales(384, 32, expanded=False) == [288 + 32 * step for step in range(8)]
    assert scales(560, 56, expanded=True)[0] == 280
    assert scales(64, 32, expanded=True) == [64, 96, 128, 160, 192, 224]
    for row in VARIANTS.values():
        assert all(
            row.accepts(side) for side in scales(row.resolution, row.block_size, expanded=True)
        )


def test_multi_scale_draws_one_side_a_batch_from_all_sides():
    for setting in ("per-batch", True):
        config = _config(multi_scale=setting, warm_resolution=64, epochs=2, warm_fraction=0.5)
        sampler = EpochSampler(1600, config, _model(384))
        for epoch, resolution in ((0, 64), (1, 384)):
            sides = [draw.side for draw in _epoch(sampler, epoch)]
            batches = [set(sides[first : first + 4]) for first in range(0, 1600, 4)]
            assert {len(batch) for batch in batches} == {1}
            assert set(sides) == set(scales(resolution, 32, expanded=True))
    narrow = EpochSampler(1600, _config(multi_scale=True, expanded_scales=False), _model(384))
    assert {draw.side for draw in _epoch(narrow, 0)} == set(scales(384, 32, expanded=False))


def _photos(data: DetectionData) -> list[int]:
    return [target.image_id for batch in data.val_dataloader() for target in batch.targets]


def test_validation_shows_every_image_once_as_the_device_sees_it(read, dataset):
    config = _config(dataset_dir=dataset, batch_size=2, num_workers=0, antialias=False)
    data = DetectionData(config, _model(96), read)
    assert _photos(data) == [1, 2, 3]
    image, target = Images(read.valid, config, "detection", None)[Draw(1, 96, None)]
    photo = read_image(read.valid.images[1].path, upright=False)
    expected = preprocess(photo, InputSpec((96, 96), antialias=False))
    np.testing.assert_array_equal(image.numpy(), expected)
    centre, size = target.boxes.numpy()[:, :2], target.boxes.numpy()[:, 2:]
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    np.testing.assert_allclose(
        corners * [640, 480, 640, 480], read.valid.images[1].boxes, atol=1e-3
    )
    assert (target.image_id, target.source_size) == (2, (480, 640))


def test_a_missing_test_split_is_one_clear_error(read):
    with pytest.raises(InputError, match="has no test split"):
        DetectionData(_config(), _model(), read).test_dataloader()
    data = DetectionData(_config(num_workers=0), _model(), replace(read, test=read.valid))
    assert len(list(data.test_dataloader())) == 1


def _ranks_photos(rank: int, read: Dataset, folder: Path) -> None:
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    data = DetectionData(_config(batch_size=1, num_workers=0), _model(), read)
    seeds = [draw.seed for draw in data.train_dataloader().sampler]
    torch.save((_photos(data), seeds), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_share_the_images(read, tmp_path):
    torch.multiprocessing.start_processes(
        _ranks_photos, (read, tmp_path), nprocs=2, start_method="fork"
    )
    (even, first), (odd, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (even, odd) == ([1, 3], [2])
    data = DetectionData(_config(batch_size=2, num_workers=0), _model(), read)
    alone = [draw.seed for draw in data.train_dataloader().sampler]
    assert (first, second) == (alone[::2], alone[1::2])


@pytest.mark.parametrize("preset", [None, "MICROSCOPY"])
def test_a_draw_gives_the_same_item_again(read, preset):
    images = _images(read, aug_config=preset)
    first, again, other = (images[Draw(0, 64, seed)] for seed in (5, 5, 6))
    assert first[0].shape == (3, 64, 64)
    torch.testing.assert_close(first[0], again[0], atol=0, rtol=0)
    torch.testing.assert_close(first[1].boxes, again[1].boxes, atol=0, rtol=0)
    assert not torch.equal(first[0], other[0])


def test_copy_paste_and_scale_jitter_happen_as_set(read):
    def boxes(**settings: object) -> list[int]:
        images = _images(read, **settings)
        return [len(images[Draw(0, 64, seed)][1].labels) for seed in range(12)]

    count = len(read.train.images[0].labels)
    assert set(boxes(scale_jitter=False)) == {count}
    assert min(boxes(scale_jitter=True, aug_config={})) < count
    pasted = boxes(scale_jitter=False, aug_config={"CopyPaste": {"p": 1}})
    assert min(pasted) >= count
    assert max(pasted) > count


def test_batches_do_not_depend_on_the_number_of_workers(read):
    batches = []
    for workers in (0, 1):
        config = _config(batch_size=2, num_workers=workers, aug_config="MICROSCOPY")
        loader = DetectionData(config, _model(), read).train_dataloader()
        loader.sampler.set_epoch(4)
        batches.append(list(loader))
    assert [len(alone) for alone in batches] == [5, 5]
    for alone, worked in zip(*batches, strict=True):
        torch.testing.assert_close(alone.images, worked.images, atol=0, rtol=0)
        for one, other in zip(alone.targets, worked.targets, strict=True):
            assert (one.image_id, one.source_size) == (other.image_id, other.source_size)
            torch.testing.assert_close(one.boxes, other.boxes, atol=0, rtol=0)
            torch.testing.assert_close(one.labels, other.labels, atol=0, rtol=0)


def test_a_worker_without_shared_memory_is_one_clear_error(read):
    loader = DetectionData(_config(num_workers=1), _model(), read).val_dataloader()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InputError, match="no shared memory for a data worker") as caught:
            list(loader)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    traceback.clear_frames(caught.tb)  # they hold the iterator: its worker ends when it goes


TINY = {"segmentation": "seg-tiny", "keypoint": "keypoint-tiny"}


@pytest.fixture(scope="module")
def shaped(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three photos with masks and keypoints."""
    root = tmp_path_factory.mktemp("shaped")
    shutil.copytree(dataset, root, dirs_exist_ok=True)
    for path in root.glob("*/_annotations.coco.json"):
        path.write_text(json.dumps(with_shapes(json.loads(path.read_text()))))
    return root


def _data(root: Path, task: Task, **settings: object) -> DetectionData:
    read = read_dataset(root, "roboflow", report=None, task=task)
    model = model_config(TINY[task], resolution=96)
    return DetectionData(_config(dataset_dir=root, **settings), model, read)


def test_masks_become_squares_by_their_nearest_pixels(shaped):
    read = read_dataset(shaped, "roboflow", report=None, task="segmentation")
    side = 96
    (batch,) = _data(shaped, "segmentation", num_workers=0).val_dataloader()
    rows = ((np.arange(side) + 0.5) * 480 / side).astype(int)
    columns = ((np.arange(side) + 0.5) * 640 / side).astype(int)
    for target, image in zip(batch.targets, read.valid.images, strict=True):
        assert target.keypoints is None
        assert (target.masks.dtype, target.masks.shape) == (
            torch.bool,
            (len(target.labels), side, side),
        )
        for mask, segmentation in zip(target.masks.numpy(), image.segmentations, strict=True):
            full = rasterize(segmentation, (480, 640))
            np.testing.assert_array_equal(mask, full[rows[:, None], columns])


def test_keypoints_become_shares_of_the_image(shaped):
    read = read_dataset(shaped, "roboflow", report=None, task="keypoint")
    (batch,) = _data(shaped, "keypoint", num_workers=0).val_dataloader()
    for target, image in zip(batch.targets, read.valid.images, strict=True):
        assert target.masks is None
        assert target.keypoints.dtype == torch.float32
        np.testing.assert_allclose(
            target.keypoints.numpy() * [640, 480, 1], image.keypoints, atol=1e-3
        )


@pytest.mark.parametrize("task", ["segmentation", "keypoint"])
def test_shapes_do_not_depend_on_the_number_of_workers(shaped, task):
    batches = []
    for workers in (0, 1):
        loader = _data(shaped, task, batch_size=2, num_workers=workers).train_dataloader()
        batches.append(list(loader))
    for alone, worked in zip(*batches, strict=True):
        for one, other in zip(alone.targets, worked.targets, strict=True):
            shapes = (one.masks, other.masks) if task == "segmentation" else one[5:] + other[5:]
            torch.testing.assert_close(*shapes, atol=0, rtol=0)
            assert len(shapes[0]) == len(one.labels)


def test_keypoints_are_mirrored_with_their_names(shaped):
    read = read_dataset(shaped, "roboflow", report=None, task="keypoint")
    config = _config(scale_jitter=False, aug_config={"HorizontalFlip": {"p": 1}})
    images = Images(read.train, config, "keypoint", read.schema)
    straight, mirrored = (images[Draw(0, 96, seed)][1].keypoints for seed in (None, 1))
    for row, label in enumerate(read.train.images[0].labels.tolist()):
        swap = {0: [2, 1, 0], 1: [1, 0, 2]}.get(label, [0, 1, 2])
        known = straight[row, swap].numpy()
        known[:, 0] = np.where(known[:, 2] > 0, 639 / 640 - known[:, 0], 0)
        np.testing.assert_allclose(mirrored[row], known, atol=1e-6)


@pytest.mark.parametrize("task", ["segmentation", "keypoint"])
def test_copy_paste_is_for_boxes_only(shaped, task):
    _data(shaped, task, aug_config="AGGRESSIVE")
    with pytest.raises(InputError, match=f"CopyPaste pastes boxes only, and {TINY[task]} learns"):
        _data(shaped, task, aug_config="MICROSCOPY")
