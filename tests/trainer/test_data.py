"""What is read from a data set's folder, and which image is drawn when."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rfdetr_edge.errors import InputError
from rfdetr_edge.images import read_image
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import preprocess
from rfdetr_edge.variants import VARIANTS
from trainer.config import TrainConfig
from trainer.data.coco import read_classes, read_split
from trainer.data.module import DetectionData, Draw, EpochSampler, TrainingImages, ValidationImages

pytestmark = pytest.mark.filterwarnings(
    # from Python 3.12 on: a loading worker is a fork of a process that has torch's threads
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)


def _config(dataset: Path, **settings: object) -> TrainConfig:
    return TrainConfig(variant="tiny", dataset=dataset, **settings)


def test_slots_follow_the_category_ids_and_the_last_is_background(dataset):
    classes = read_classes(dataset)
    assert classes.names == ("RBC", "WBC", "Platelets", "__background__")
    assert classes.category_ids == (1, 2, 3, None)


def test_boxes_become_corners_and_labels_slots(dataset, photos):
    split = read_split(dataset, "train", read_classes(dataset))
    assert [image.path.name for image in split.images] == [i["file_name"] for i in photos["images"]]
    for image in split.images:
        rows = [row for row in photos["annotations"] if row["image_id"] == image.image_id]
        x, y, w, h = np.array([row["bbox"] for row in rows]).T
        np.testing.assert_array_equal(image.boxes, np.stack([x, y, x + w, y + h], axis=1))
        assert image.labels.tolist() == [row["category_id"] - 1 for row in rows]
        assert image.source_size == (480, 640)


def test_a_category_that_only_groups_others_is_left_out(tmp_path, photos, write_split):
    photos["categories"] = [
        {"id": 0, "name": "cell", "supercategory": "none"},
        *reversed(photos["categories"]),
        {"id": 8, "name": "unseen", "supercategory": "cell"},
    ]
    classes = read_classes(write_split(tmp_path / "train", photos).parent)
    assert classes.foreground() == {"RBC": 1, "WBC": 2, "Platelets": 3, "unseen": 8}
    photos["annotations"][0]["category_id"] = 0
    assert (
        "cell"
        in read_classes(write_split(tmp_path / "again" / "train", photos).parent).foreground()
    )


def test_crowds_and_empty_boxes_are_dropped_and_the_rest_clipped(tmp_path, photos, write_split):
    crowd, flat, outside, wide, *_ = photos["annotations"]
    crowd["iscrowd"] = 1
    flat["bbox"] = [10, 10, 0, 5]
    outside["bbox"] = [700, 10, 20, 20]
    wide["bbox"] = [600, -5, 90, 20]
    write_split(tmp_path / "train", photos)
    before = sum(row["image_id"] == 1 for row in photos["annotations"])
    image = read_split(tmp_path, "train", read_classes(tmp_path)).images[0]
    assert len(image.boxes) == before - 3
    assert image.boxes[0].tolist() == [600, 0, 640, 15]


def _drop(key: str):
    return lambda document: document.pop(key)


def _set(place: str, **fields: object):
    return lambda document: document[place][0].update(fields)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("images"), "no list 'images'"),
        (_drop("annotations"), "no list 'annotations'"),
        (_set("annotations", image_id=77), "names an image or a category"),
        (_set("annotations", category_id=77), "names an image or a category"),
        (_set("annotations", bbox=[1, 2, 3]), r"must be \[x, y, width, height\]"),
        (_set("images", file_name="missing.jpg"), r"missing\.jpg is listed in .* does not exist"),
        (_set("images", width=None), "no width and height"),
        (_set("categories", name="WBC"), "two categories the same name"),
        (lambda document: document.update(categories=[], annotations=[]), "lists no categories"),
        (lambda document: document.update(annotations=[]), "no image with a box"),
        (lambda document: document.update(images=[], annotations=[]), "no image with a box"),
    ],
)
def test_a_malformed_split_is_one_clear_error(tmp_path, photos, write_split, damage, message):
    damage(photos)
    write_split(tmp_path / "train", photos)
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, "train", read_classes(tmp_path))


def test_a_missing_or_unreadable_file_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="a data set is a folder with train, valid and test"):
        read_classes(tmp_path)
    path = tmp_path / "train" / "_annotations.coco.json"
    path.parent.mkdir()
    for text in ("{", "[]", "3"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"_annotations\.coco\.json"):
            read_classes(tmp_path)


def test_a_category_that_train_does_not_know_is_refused(dataset, tmp_path, photos, write_split):
    photos["categories"].append({"id": 9, "name": "parasite", "supercategory": "cell"})
    photos["annotations"][0]["category_id"] = 9
    write_split(tmp_path / "valid", photos)
    with pytest.raises(InputError, match="a category that the train split does not know"):
        read_split(tmp_path, "valid", read_classes(dataset))


def test_a_photo_of_another_size_than_annotated_is_refused(tmp_path, photos, write_split):
    photos["images"][0].update(width=480, height=640)
    write_split(tmp_path / "train", photos)
    split = read_split(tmp_path, "train", read_classes(tmp_path))
    with pytest.raises(InputError, match="640x480 pixels, but its annotations say 480x640"):
        TrainingImages(split, _config(tmp_path))


def test_a_validation_image_is_what_the_device_sees(dataset):
    config = _config(dataset, resolution=96, antialias=False)
    split = read_split(dataset, "valid", read_classes(dataset))
    tensor, target = ValidationImages(split, config)[1]
    image = read_image(split.images[1].path, upright=False)
    expected = preprocess(image, InputSpec((96, 96), antialias=False))
    np.testing.assert_array_equal(tensor.numpy(), expected)
    centre, size = target.boxes.numpy()[:, :2], target.boxes.numpy()[:, 2:]
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    np.testing.assert_allclose(corners * [640, 480, 640, 480], split.images[1].boxes, atol=1e-3)
    assert (target.image_id, target.source_size) == (2, (480, 640))


def test_a_draw_gives_the_same_item_again(dataset):
    split = read_split(dataset, "train", read_classes(dataset))
    images = TrainingImages(split, _config(dataset, paste_probability=1))
    first, again, other = (images[Draw(0, 64, seed)] for seed in (5, 5, 6))
    assert first[0].shape == (3, 64, 64)
    torch.testing.assert_close(first[0], again[0], atol=0, rtol=0)
    torch.testing.assert_close(first[1].boxes, again[1].boxes, atol=0, rtol=0)
    assert not torch.equal(first[0], other[0])


def test_an_epoch_draws_every_image_once_and_differs_from_the_next(dataset):
    def epoch(number: int, seed: int = 42) -> list[Draw]:
        sampler = EpochSampler(50, _config(dataset, seed=seed))
        sampler.set_epoch(number)
        return list(sampler)

    assert sorted(draw[0] for draw in epoch(0)) == list(range(50))
    assert epoch(3) == epoch(3)
    assert epoch(3) != epoch(4)
    assert epoch(3) != epoch(3, seed=43)
    assert len({draw.seed for number in range(3) for draw in epoch(number)}) == 150


def test_the_resolution_is_small_at_first(dataset):
    config = _config(dataset, epochs=10, resolution=96, warm_resolution=64, warm_fraction=0.3)
    assert [config.side_at(epoch) for epoch in range(10)] == [64] * 3 + [96] * 7
    sampler = EpochSampler(4, config)
    sampler.set_epoch(2)
    assert {draw.side for draw in sampler} == {64}
    sampler.set_epoch(3)
    assert {draw.side for draw in sampler} == {96}
    assert _config(dataset).side_at(0) == VARIANTS["tiny"].resolution


def test_batches_do_not_depend_on_the_number_of_workers(dataset):
    batches = []
    for workers in (0, 1):
        config = _config(dataset, resolution=64, batch_size=2, num_workers=workers)
        loader = DetectionData(config, read_classes(dataset)).train_dataloader()
        loader.sampler.set_epoch(4)
        batches.append(list(loader))
    (alone,), (worked,) = batches  # three photos: one batch of two, the rest is left out
    torch.testing.assert_close(alone.images, worked.images, atol=0, rtol=0)
    assert [t.image_id for t in alone.targets] == [t.image_id for t in worked.targets]


def test_a_data_set_smaller_than_a_batch_still_gives_one(dataset):
    data = DetectionData(_config(dataset, resolution=64, num_workers=0), read_classes(dataset))
    (batch,) = data.train_dataloader()
    assert batch.images.shape == (3, 3, 64, 64)
