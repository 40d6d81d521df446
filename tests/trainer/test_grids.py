"""The pictures of what the network is fed."""

from dataclasses import replace

import numpy as np
import pytest
from shapes import with_shapes

from rfdetr_edge.datasets import read_dataset
from rfdetr_edge.draw import class_colour
from rfdetr_edge.images import read_image
from trainer.config import TrainConfig, model_config
from trainer.data.grids import save_grids
from trainer.data.module import DetectionData


def test_the_first_batches_are_drawn_with_their_boxes(dataset, tmp_path):
    read = read_dataset(dataset, "roboflow", report=None)
    config = TrainConfig(dataset_dir=dataset, batch_size=2, num_workers=0, multi_scale="off")
    data = DetectionData(config, model_config("tiny", resolution=160), read)
    save_grids(data.train_dataloader(), tmp_path, "train", read.classes)
    save_grids(data.val_dataloader(), tmp_path, "valid", read.classes)
    names = [f"train_batch{index}_grid.jpg" for index in range(3)]
    names += [f"valid_batch{index}_grid.jpg" for index in range(2)]  # three photos: two batches
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    grid = read_image(tmp_path / "valid_batch0_grid.jpg", upright=False)
    assert grid.shape == (2400, 2400, 3)
    assert (grid[850:] > 250).all()  # two of nine tiles are taken
    first, second = grid[:800, :800], grid[:800, 800:1600]
    photo = read_image(read.valid.images[0].path, upright=False)
    np.testing.assert_allclose(first.mean((0, 1)), photo.mean((0, 1)), atol=12)
    for tile, image in ((first, read.valid.images[0]), (second, read.valid.images[1])):
        for box, label in zip(image.boxes * ([1.25, 800 / 480] * 2), image.labels, strict=True):
            column, middle = round(float(box[0])), round(float(box[1::2].mean()))
            if 2 < column < 797:
                edge = tile[middle - 3 : middle + 4, column - 1 : column + 2].astype(int)
                distance = np.abs(edge - class_colour(int(label))).sum(axis=-1)
                assert distance.min() < 90  # JPEG blurs colours


def test_a_grid_holds_nine_images_of_a_larger_batch(dataset, tmp_path):
    read = read_dataset(dataset, "roboflow", report=None)
    many = replace(read.valid, images=read.valid.images * 4)
    config = TrainConfig(dataset_dir=dataset, batch_size=12, num_workers=0)
    data = DetectionData(config, model_config("tiny", resolution=64), replace(read, valid=many))
    save_grids(data.val_dataloader(), tmp_path, "valid", read.classes)
    grid = read_image(tmp_path / "valid_batch0_grid.jpg", upright=False)
    assert [path.name for path in tmp_path.iterdir()] == ["valid_batch0_grid.jpg"]
    assert (grid[1610:2390, 1610:2390].std(axis=(0, 1)) > 5).all()


@pytest.mark.parametrize(
    ("task", "variant"), [("segmentation", "seg-tiny"), ("keypoint", "keypoint-tiny")]
)
def test_masks_are_tinted_and_keypoints_dotted(photos, write_split, tmp_path, task, variant):
    for split in ("train", "valid"):
        write_split(tmp_path / split, with_shapes(photos))
    read = read_dataset(tmp_path, "roboflow", report=None, task=task)
    config = TrainConfig(dataset_dir=tmp_path, batch_size=3, num_workers=0)
    data = DetectionData(config, model_config(variant, resolution=160), read)
    (batch,) = data.val_dataloader()
    pictures = []
    for name, rest in (("plain", {"masks": None, "keypoints": None}), ("shapes", {})):
        targets = [target._replace(**rest) for target in batch.targets]
        (tmp_path / name).mkdir()
        save_grids([batch._replace(targets=targets)], tmp_path / name, "val", read.classes)
        pictures.append(read_image(tmp_path / name / "val_batch0_grid.jpg", upright=False))
    changed = np.abs(pictures[0].astype(int) - pictures[1]).sum(axis=-1) > 60
    target, tile = batch.targets[0], changed[:800, :800]
    if task == "segmentation":
        anywhere = target.masks.any(dim=0).numpy().repeat(5, axis=0).repeat(5, axis=1)
        assert tile[anywhere].mean() > 0.5
        assert tile[~anywhere].mean() < 0.01
    else:
        centres = target.keypoints[target.labels == 0, 1]  # others lie on the edge of their box
        x, y, v = centres[centres[:, 2] > 0].numpy().T
        x, y = (np.array([x, y]) * 800).round().astype(int)
        ring = np.where(v == 1, 6, 0)
        assert set(v) == {1, 2}
        assert tile[y, x + ring].mean() > 0.9
        assert tile[y, x][v == 1].mean() < 0.5
        assert 0 < tile.mean() < 0.02
