"""Augmentation keeps boxes on their objects, and the same seed gives the same image."""

import numpy as np
import pytest

from trainer.data.paste import PasteBank
from trainer.data.transforms import Sample, augment, crop, turn

MARK = np.array([250, 10, 10], np.uint8)


def _marked(box: tuple[int, int, int, int], size: tuple[int, int] = (40, 60)) -> Sample:
    """A dark image with one bright block, which is its box."""
    x0, y0, x1, y1 = box
    image = np.zeros((*size, 3), np.uint8)
    image[y0:y1, x0:x1] = MARK
    return Sample(image, np.array([box], np.float32), np.array([3]))


def _block(image: np.ndarray) -> list[int]:
    """The bounds of the marked pixels, xyxy."""
    y, x = np.nonzero((image == MARK).all(axis=-1))
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("symmetry", range(8))
def test_a_turned_box_stays_on_its_pixels(symmetry):
    sample = _marked((5, 8, 21, 17))
    turned = turn(sample, symmetry)
    assert turned.image.shape == ((60, 40, 3) if symmetry & 4 else (40, 60, 3))
    assert turned.boxes.tolist() == [_block(turned.image)]
    assert turned.labels.tolist() == [3]


def test_the_eight_symmetries_differ():
    sample = _marked((5, 8, 21, 17), size=(50, 50))
    assert len({turn(sample, symmetry).image.tobytes() for symmetry in range(8)}) == 8
    assert turn(sample, 0).image.tobytes() == sample.image.tobytes()


def test_a_crop_clips_its_boxes_and_drops_the_small_rests():
    boxes = np.array([[10, 10, 20, 20], [0, 10, 14, 20], [0, 10, 12, 20], [40, 0, 50, 9]], "f4")
    sample = Sample(np.zeros((40, 60, 3), np.uint8), boxes, np.arange(4))
    cropped = crop(sample, left=9, top=8, width=20, height=10)
    assert cropped.image.shape == (10, 20, 3)
    # of the second box 5/14 is left, of the third 3/12 times 8/10 in height, of the fourth nothing
    assert cropped.boxes.tolist() == [[1, 2, 11, 10], [0, 2, 5, 10]]
    assert cropped.labels.tolist() == [0, 1]


def test_a_cropped_box_stays_on_its_pixels():
    cropped = crop(_marked((5, 8, 21, 17)), left=9, top=2, width=40, height=30)
    assert cropped.boxes.tolist() == [_block(cropped.image)]


@pytest.mark.parametrize("seed", range(20))
def test_augmented_boxes_lie_inside_the_image(seed, samples):
    for sample in samples:
        found = augment(sample, np.random.default_rng(seed))
        height, width = found.image.shape[:2]
        assert found.image.dtype == np.uint8
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [width, height, width, height]).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert len(found.boxes) == len(found.labels)


def test_augmentation_follows_the_seed(samples):
    first, second, other = (augment(samples[0], np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.image.tobytes() != other.image.tobytes()


def _overlaps(boxes: np.ndarray) -> int:
    """Pairs of boxes that share an area."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high > low).all(axis=-1)
    return int((shared.sum() - len(boxes)) // 2)


def test_pasted_objects_are_of_rare_classes_and_touch_no_box(samples):
    bank = PasteBank(samples)
    rare = {1, 2}  # WBC and platelets, beside many red cells
    added = 0
    for seed in range(30):
        sample = samples[seed % len(samples)]
        pasted = bank.paste(sample, np.random.default_rng(seed))
        count = len(sample.boxes)
        np.testing.assert_array_equal(pasted.boxes[:count], sample.boxes)
        assert set(pasted.labels[count:].tolist()) <= rare
        assert 0 <= len(pasted.boxes) - count <= 3
        assert _overlaps(pasted.boxes) == _overlaps(sample.boxes)
        changed = (pasted.image != sample.image).any()
        assert changed == (len(pasted.boxes) > count)
        added += len(pasted.boxes) - count
    assert added > 10


def test_pasting_leaves_the_sample_and_the_bank_as_they_were(samples):
    before = samples[0].image.copy()
    bank = PasteBank(samples)
    first = bank.paste(samples[0], np.random.default_rng(3))
    again = bank.paste(samples[0], np.random.default_rng(3))
    np.testing.assert_array_equal(samples[0].image, before)
    np.testing.assert_array_equal(first.image, again.image)


def test_a_pasted_object_lies_in_its_box():
    flat = Sample(np.zeros((80, 80, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, int))
    marked = _marked((30, 30, 50, 46), size=(80, 80))
    many = Sample(flat.image, np.tile([[1, 1, 9, 9]], (9, 1)).astype("f4"), np.full(9, 0))
    pasted = PasteBank([marked, many]).paste(flat, np.random.default_rng(0))
    x0, y0, x1, y1 = _block(pasted.image)
    assert len(pasted.boxes)
    assert pasted.boxes[:, 0].min() <= x0
    assert pasted.boxes[:, 1].min() <= y0
    assert pasted.boxes[:, 2].max() >= x1
    assert pasted.boxes[:, 3].max() >= y1


def test_a_bank_without_rare_classes_changes_nothing():
    sample = _marked((5, 8, 21, 17))
    assert PasteBank([sample]).paste(sample, np.random.default_rng(0)) is sample
