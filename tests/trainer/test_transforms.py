"""Augmentation keeps boxes on their objects, and the same seed gives the same image."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shapes import plain_runs

from rfdetr_edge.datasets import LabelledImage
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import write_image
from rfdetr_edge.keypoint_schema import (
    PERSON,
    ClassKeypoints,
    KeypointSchema,
    class_keypoints,
    numbered_schema,
)
from rfdetr_edge.rasterize import rasterize
from trainer.data.augmentation import PRESETS, Augmentation, read_augmentation
from trainer.data.paste import PasteBank
from trainer.data.transforms import (
    Sample,
    augment,
    crop,
    jitter_scale,
    mirror_swaps,
    read_sample,
    turn,
)

MARK = np.array([250, 10, 10], np.uint8)


def _sample(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Sample:
    """Boxes and nothing else."""
    return Sample(image, boxes, labels, np.zeros((len(boxes), 0, 3), np.float32))


def _marked(box: tuple[int, int, int, int], size: tuple[int, int] = (40, 60)) -> Sample:
    """A dark image with one bright block, which is its box."""
    x0, y0, x1, y1 = box
    image = np.zeros((*size, 3), np.uint8)
    image[y0:y1, x0:x1] = MARK
    return _sample(image, np.array([box], np.float32), np.array([3]))


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
    sample = _sample(np.zeros((40, 60, 3), np.uint8), boxes, np.arange(4))
    # of the second box 5/14 is left, of the third 3/12 times 8/10 in height, of the fourth nothing
    cropped = crop(sample, left=9, top=8, width=20, height=10, smallest_rest=0.25)
    assert cropped.image.shape == (10, 20, 3)
    assert cropped.boxes.tolist() == [[1, 2, 11, 10], [0, 2, 5, 10]]
    assert cropped.labels.tolist() == [0, 1]
    everything_left = crop(sample, left=9, top=8, width=20, height=10)
    assert everything_left.boxes.tolist() == [[1, 2, 11, 10], [0, 2, 5, 10], [0, 2, 3, 10]]


def test_a_cropped_box_stays_on_its_pixels():
    cropped = crop(_marked((5, 8, 21, 17)), left=9, top=2, width=40, height=30)
    assert cropped.boxes.tolist() == [_block(cropped.image)]


@pytest.mark.parametrize("preset", PRESETS)
def test_augmented_boxes_lie_inside_the_image(preset, samples):
    augmentation = read_augmentation(preset)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        found = augment(jitter_scale(samples[seed % 3], rng), augmentation, rng)
        height, width = found.image.shape[:2]
        assert found.image.dtype == np.uint8
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [width, height, width, height]).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert len(found.boxes) == len(found.labels)


def test_augmentation_follows_the_seed(samples):
    microscopy = read_augmentation("MICROSCOPY")
    first, second, other = (
        augment(samples[0], microscopy, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.image.tobytes() != other.image.tobytes()


def test_no_augmentation_changes_nothing(samples):
    found = augment(samples[0], Augmentation(), np.random.default_rng(0))
    np.testing.assert_array_equal(found.image, samples[0].image)
    np.testing.assert_array_equal(found.boxes, samples[0].boxes)


def _images(sample: Sample, augmentation: Augmentation, draws: int = 60) -> set[bytes]:
    rng = np.random.default_rng(0)
    return {augment(sample, augmentation, rng).image.tobytes() for _ in range(draws)}


@pytest.mark.parametrize(
    ("transforms", "symmetries"),
    [
        ({"HorizontalFlip": {"p": 0.5}}, {0, 1}),
        ({"VerticalFlip": {"p": 1}}, {2}),
        ({"Transpose": {"p": 1}}, {4}),
        ({"RandomRotate90": {"p": 1}}, {0, 3, 5, 6}),
        ({"HorizontalFlip": {}, "VerticalFlip": {}, "Transpose": {}}, set(range(8))),
    ],
)
def test_flips_and_turns_reach_their_symmetries_only(transforms, symmetries):
    sample = _marked((5, 8, 21, 17))
    expected = {turn(sample, symmetry).image.tobytes() for symmetry in symmetries}
    assert _images(sample, read_augmentation(transforms)) == expected


def test_limits_may_be_given_in_either_order(samples):
    names = ("GaussianBlur", "sigma_limit", (0.5, 3.0)), ("RandomScaleCrop", "scale", (0.4, 1.0))
    for transform, limits, (low, high) in names:
        up, down = ({transform: {"p": 1, limits: pair}} for pair in ((low, high), (high, low)))
        assert _images(samples[0], read_augmentation(up), 2) == _images(
            samples[0], read_augmentation(down), 2
        )


def test_a_quarter_turn_is_numpys():
    sample = _marked((5, 8, 21, 17))
    for quarters, symmetry in enumerate((0, 5, 3, 6)):
        np.testing.assert_array_equal(
            turn(sample, symmetry).image, np.rot90(sample.image, quarters)
        )


def test_a_crop_keeps_the_shape_of_the_source_also_after_a_turn(samples):
    augmentation = read_augmentation(
        {"Transpose": {"p": 0.5}, "RandomScaleCrop": {"p": 0.6, "scale": [0.5, 1.0]}}
    )
    rng = np.random.default_rng(0)
    sizes = [augment(samples[0], augmentation, rng).image.shape[:2] for _ in range(200)]
    aspects = np.array([width / height for height, width in sizes])
    np.testing.assert_allclose(aspects, 640 / 480, rtol=0.01)
    widths = np.array([width for _, width in sizes])
    assert 310 < widths.min() < 330
    # upright (half of all) and not cropped (0.4 of these): a fifth, give or take three sigmas
    assert 0.115 < (widths == 640).mean() < 0.285


def test_colours_move_about_the_middle_by_at_most_the_given_shares():
    grey = _sample(
        np.full((4, 4, 3), 200, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    )
    rng = np.random.default_rng(0)

    def values(**shares: float) -> np.ndarray:
        jitter = {"p": 1, "brightness": 0, "contrast": 0, "saturation": 0, **shares}
        augmentation = read_augmentation({"ColorJitter": jitter})
        pixels = [augment(grey, augmentation, rng).image[0, 0] for _ in range(300)]
        return np.array(pixels, int)

    for shares, low, high in (
        ({"brightness": 0.1}, 174.5, 225.5),  # 200 +- 25.5
        ({"contrast": 0.2}, 185.5, 214.5),  # 127.5 + 72.5 * (1 +- 0.2)
        ({"saturation": 0.5}, 200, 200),  # grey has none
    ):
        drawn = values(**shares)
        assert (drawn == drawn[:, :1]).all()  # grey stays grey
        assert low - 0.51 <= drawn.min() <= low + 2
        assert high - 2 <= drawn.max() <= high + 0.51
    assert (np.ptp(values(channel_gain=0.1), axis=1) > 0).mean() > 0.9


def test_scale_jitter_cuts_squares_of_upstreams_sizes(samples):
    source = samples[0]  # 640 x 480
    rng = np.random.default_rng(0)
    sizes = [jitter_scale(source, rng).image.shape[:2] for _ in range(400)]
    whole = [size for size in sizes if size == (480, 640)]
    cut = [size for size in sizes if size != (480, 640)]
    assert 0.42 < len(whole) / len(sizes) < 0.58
    # at 400 pixels the whole side is 400, so 384 to 600 reaches over it: 480 high, 460 to 640 wide
    assert max(height for height, _ in cut) == 480
    assert {height for height, width in cut if width > 481} == {480}
    squares = [height for height, width in cut if height < 480]
    assert all(height == width for height, width in cut if height < 480)
    assert 384 / 600 * 480 - 1 <= min(squares) < 315


def test_a_small_image_survives_every_window():
    tiny = _sample(np.zeros((1, 2, 3), np.uint8), np.array([[0, 0, 2, 1]], "f4"), np.array([0]))
    rng = np.random.default_rng(0)
    for _ in range(30):
        found = augment(jitter_scale(tiny, rng), read_augmentation("AGGRESSIVE"), rng)
        assert min(found.image.shape) >= 1


def _written(folder: Path, samples: Sequence[Sample]) -> list[LabelledImage]:
    """The samples as image files, lossless."""
    images = []
    for index, sample in enumerate(samples):
        path = folder / f"{index}.png"
        write_image(path, sample.image)
        size = sample.image.shape[:2]
        columns = sample.boxes, sample.labels, (), sample.keypoints
        images.append(LabelledImage(path, index, size, *columns))
    return images


def _overlaps(boxes: np.ndarray) -> int:
    """Pairs of boxes that share an area."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high > low).all(axis=-1)
    return int((shared.sum() - len(boxes)) // 2)


def test_pasted_objects_are_of_rare_classes_and_touch_no_box(samples, tmp_path):
    bank = PasteBank(_written(tmp_path, samples))
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


def test_pasting_leaves_the_sample_and_the_bank_as_they_were(samples, tmp_path):
    before = samples[0].image.copy()
    bank = PasteBank(_written(tmp_path, samples))
    first = bank.paste(samples[0], np.random.default_rng(3))
    again = bank.paste(samples[0], np.random.default_rng(3))
    np.testing.assert_array_equal(samples[0].image, before)
    np.testing.assert_array_equal(first.image, again.image)


def test_a_pasted_object_lies_in_its_box(tmp_path):
    flat = _sample(np.zeros((80, 80, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, int))
    marked = _marked((30, 30, 50, 46), size=(80, 80))
    many = _sample(flat.image, np.tile([[1, 1, 9, 9]], (9, 1)).astype("f4"), np.full(9, 0))
    bank = PasteBank(_written(tmp_path, [marked, many]))
    pasted = bank.paste(flat, np.random.default_rng(0))
    x0, y0, x1, y1 = _block(pasted.image)
    assert len(pasted.boxes)
    assert pasted.boxes[:, 0].min() <= x0
    assert pasted.boxes[:, 1].min() <= y0
    assert pasted.boxes[:, 2].max() >= x1
    assert pasted.boxes[:, 3].max() >= y1


def test_a_bank_reads_no_image_before_it_pastes(tmp_path):
    samples = [_marked((30, 30, 50, 46), size=(80, 80)), *[_marked((1, 1, 9, 9))] * 3]
    samples[0] = replace(samples[0], labels=np.array([1]))
    images = _written(tmp_path, samples)
    images[0].path.unlink()
    bank = PasteBank(images)
    with pytest.raises(InputError, match=r"there is no image file .*0\.png"):
        bank.paste(samples[1], np.random.default_rng(0))


def test_a_bank_without_rare_classes_changes_nothing(tmp_path):
    sample = _marked((5, 8, 21, 17))
    assert PasteBank(_written(tmp_path, [sample])).paste(sample, np.random.default_rng(0)) is sample


HAND = class_keypoints(["left_tip", "palm", "right_tip"])
HANDS = KeypointSchema((ClassKeypoints(), HAND, class_keypoints(["left_end", "right_end"])))


def _with_masks(sample: Sample, masks: np.ndarray) -> Sample:
    """The sample of a source image with these masks, (n, h, w)."""
    size = sample.image.shape[:2]
    rles = tuple({"size": [*size], "counts": plain_runs(mask)} for mask in masks)
    pixels = np.arange(masks[0].size, dtype=np.int32).reshape(size)
    return replace(sample, segmentations=rles, pixels=pixels)


def _masks(sample: Sample) -> list[np.ndarray]:
    """The masks where a sample now shows them."""
    return [rasterize(one, one["size"]).take(sample.pixels) for one in sample.segmentations]


def _pointed(places: Sequence[tuple[int, int, int]], label: int = 1) -> Sample:
    """A picture, 40 x 60, whose pixels at x, y have the colours 1, 2, 3 and so on, in one box."""
    image = np.zeros((40, 60, 3), np.uint8)
    points = np.zeros((1, 3, 3), np.float32)
    for index, (x, y, v) in enumerate(places):
        image[y, x] = index + 1
        points[0, index] = x, y, v
    boxes = np.array([[0, 0, 60, 40]], np.float32)
    sample = Sample(image, boxes, np.array([label]), points, mirror_swaps(HANDS))
    return _with_masks(sample, image[None, ..., 0] > 0)


@pytest.mark.parametrize("symmetry", range(8))
def test_masks_and_points_are_turned_with_their_pixels(symmetry):
    turned = turn(_pointed([(3, 5, 2), (20, 7, 1), (50, 30, 2)]), symmetry)
    np.testing.assert_array_equal(_masks(turned), [turned.image[..., 0] > 0])
    mirrored = symmetry in (1, 2, 4, 7)  # an odd number of reflections
    colours = [3, 2, 1] if mirrored else [1, 2, 3]
    for (x, y, _), colour in zip(turned.keypoints[0].astype(int), colours, strict=True):
        assert turned.image[y, x, 0] == colour
    assert turned.keypoints[0, :, 2].tolist() == [2, 1, 2]


def test_a_mirror_swaps_the_points_of_each_class_and_leaves_unlabelled_ones_at_zero():
    places = [(3, 5, 2), (20, 7, 1), (0, 0, 0)]
    hand, bar = (turn(_pointed(places, label), 1).keypoints for label in (1, 2))
    assert hand[0].tolist() == [[0, 0, 0], [39, 7, 1], [56, 5, 2]]
    assert bar[0].tolist() == [[39, 7, 1], [56, 5, 2], [0, 0, 0]]
    twice = turn(turn(_pointed(places), 1), 1).keypoints
    np.testing.assert_array_equal(twice, _pointed(places).keypoints)


def test_swaps_are_the_flip_pairs_of_each_class():
    swaps = mirror_swaps(HANDS)
    assert swaps is not None
    assert swaps.tolist() == [[0, 1, 2], [2, 1, 0], [1, 0, 2]]
    assert mirror_swaps(numbered_schema([3, 0])) is None
    assert mirror_swaps(KeypointSchema((PERSON, class_keypoints(["hub"])))) is None


def test_a_crop_cuts_masks_and_forgets_the_points_outside():
    sample = _pointed([(9, 8, 2), (28, 17, 1), (29, 17, 2)])
    cropped = crop(sample, left=9, top=8, width=20, height=10)
    np.testing.assert_array_equal(_masks(cropped), [cropped.image[..., 0] > 0])
    assert cropped.keypoints[0].tolist() == [[0, 0, 2], [19, 9, 1], [0, 0, 0]]
    assert cropped.swaps is sample.swaps


def test_a_crop_drops_the_masks_and_points_of_the_boxes_it_drops():
    sample = _pointed([(9, 8, 2)])
    boxes = np.array([[50, 30, 60, 40], [0, 0, 20, 20]], np.float32)
    points = np.repeat(sample.keypoints, 2, axis=0) * [[[1]], [[2]]]
    two = Sample(sample.image, boxes, np.array([2, 1]), points)
    (mask,) = _masks(sample)
    cropped = crop(_with_masks(two, np.stack([~mask, mask])), 0, 0, 30, 30)
    assert cropped.labels.tolist() == [1]
    np.testing.assert_array_equal(_masks(cropped), [mask[:30, :30]])
    assert cropped.keypoints[0, 0].tolist() == [18, 16, 4]


@pytest.mark.parametrize(
    ("transforms", "symmetries"),
    [
        ({"HorizontalFlip": {"p": 1}}, {0}),
        ({"HorizontalFlip": {}, "VerticalFlip": {}, "Transpose": {}}, {0}),
        ({"HorizontalFlip": {}, "RandomRotate90": {"p": 1}}, {0, 3, 5, 6}),
    ],
)
def test_points_without_flip_pairs_are_turned_and_never_mirrored(transforms, symmetries):
    sample = replace(_pointed([(9, 8, 2), (28, 17, 1)]), swaps=None)
    expected = {turn(sample, symmetry).image.tobytes() for symmetry in symmetries}
    assert _images(sample, read_augmentation(transforms)) == expected


def test_masks_and_points_stay_on_their_objects_whatever_is_drawn(samples):
    source = samples[0]
    height, width = source.image.shape[:2]
    centres = (source.boxes[:, :2] + source.boxes[:, 2:]) / 2
    points = np.concatenate([centres, np.full((len(centres), 1), 2)], axis=1)[:, None]
    y, x = np.ogrid[:height, :width]
    left, top, right, bottom = source.boxes.T[..., None, None]
    masks = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    pointed = replace(source, keypoints=points.astype("f4"), swaps=np.zeros((3, 1), np.intp))
    shaped = _with_masks(pointed, masks)
    seen = 0
    for seed in range(15):
        rng = np.random.default_rng(seed)
        found = augment(jitter_scale(shaped, rng), read_augmentation("AGGRESSIVE"), rng)
        assert found.pixels.shape == found.image.shape[:2]
        rows = zip(_masks(found), found.boxes, found.keypoints[:, 0], strict=True)
        for mask, box, (x, y, v) in rows:
            rows, columns = np.nonzero(mask)
            bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(bounds, box, atol=1)
            if v:
                seen += 1
                assert mask[int(y), int(x)]
    assert seen > 50


def test_masks_are_read_with_the_image(tmp_path):
    marked = _marked((5, 8, 21, 17))
    (written,) = _written(tmp_path, [marked])
    polygon = [[5, 8, 21, 8, 21, 17, 5, 17]]
    labelled = replace(written, segmentations=(polygon,))
    sample = read_sample(labelled, "segmentation")
    mask = rasterize(sample.segmentations[0], (40, 60)).take(sample.pixels)
    np.testing.assert_array_equal(mask, (marked.image == MARK).all(axis=-1))
    assert read_sample(labelled).pixels is None
