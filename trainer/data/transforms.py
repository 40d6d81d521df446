"""Augmentation of training images. It ends in `rfdetr_edge.preprocess`, as everything does.

The random generator is always handed in, so an image drawn with the same seed is the same image.
Only `turn` and `crop` move pixels: whatever else an image carries is moved in these two.
"""

from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.datasets import LabelledImage
from rfdetr_edge.images import RGB, read_image
from rfdetr_edge.keypoint_schema import KeypointSchema
from rfdetr_edge.variants import Task
from trainer.data.augmentation import Augmentation, ColourJitter, ScaleCrop

Boxes = NDArray[np.float32]

_QUARTER_TURNS = (0, 5, 3, 6)  # the symmetries that turn by 0, 90, 180 and 270 degrees
_SMALLEST_REST = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """image: (h, w, 3) uint8 RGB; boxes: (n, 4) float32 xyxy pixels; labels: (n,) int64 slots.

    keypoints: (n, K, 3) float32, x and y in pixels and v as COCO's.
    swaps: (slots, K), which point of a class takes a point's place in a mirror image; with
        keypoints and without swaps, an image is not mirrored.
    segmentations: COCO polygons or RLE of the source image, one a box; () without masks.
    pixels: (h, w) int32, for masks: which pixel of the source each one is, row by row. Masks are
        rasterized last, one by one: a hundred of a large image would not fit.
    """

    image: RGB
    boxes: Boxes
    labels: NDArray[np.int64]
    keypoints: NDArray[np.float32]
    swaps: NDArray[np.intp] | None = None
    segmentations: tuple[Any, ...] = ()
    pixels: NDArray[np.int32] | None = None


def read_sample(
    labelled: LabelledImage, task: Task = "detection", swaps: NDArray[np.intp] | None = None
) -> Sample:
    """An image with its labels. Raises InputError when it cannot be decoded."""
    image = read_image(labelled.path, upright=False)
    sample = Sample(image, labelled.boxes, labelled.labels, labelled.keypoints, swaps)
    if task != "segmentation":
        return sample
    pixels = np.arange(image[..., 0].size, dtype=np.int32).reshape(image.shape[:2])
    return replace(sample, segmentations=labelled.segmentations, pixels=pixels)


def mirror_swaps(schema: KeypointSchema) -> NDArray[np.intp] | None:
    """`Sample.swaps` of a schema; None when a class with points has no flip pairs."""
    swaps = np.tile(np.arange(schema.widest), (len(schema.classes), 1))
    for row, one in zip(swaps, schema.classes, strict=True):
        if one.names and not one.flip_pairs:
            return None
        for first, second in one.flip_pairs:
            row[[first, second]] = second, first
    return swaps


def augment(sample: Sample, augmentation: Augmentation, rng: np.random.Generator) -> Sample:
    """Flips and turns, then crop, blur and colour, each as often as its p says.

    Keypoints that do not know their mirror image (`Sample.swaps`) are turned, but not flipped.
    """
    mirrors = (augmentation.HorizontalFlip, augmentation.VerticalFlip, augmentation.Transpose)
    symmetry = sum(1 << bit for bit, mirror in enumerate(mirrors) if rng.random() < mirror.p)
    mirrored = sample.swaps is not None or not sample.keypoints.shape[1]
    turned = turn(sample, symmetry if mirrored else 0)
    if rng.random() < augmentation.RandomRotate90.p:
        turned = turn(turned, _QUARTER_TURNS[int(rng.integers(4))])
    window, blur = augmentation.RandomScaleCrop, augmentation.GaussianBlur
    stretched = turned.image.shape != sample.image.shape
    if rng.random() < (1 if stretched and window.p else window.p):
        turned = _crop_like(sample.image.shape[:2], turned, window, rng)
    image = turned.image
    if rng.random() < blur.p:
        image = cv2.GaussianBlur(image, (0, 0), sigmaX=rng.uniform(*np.sort(blur.sigma_limit)))
    if rng.random() < augmentation.ColorJitter.p:
        image = _jitter_colour(image, augmentation.ColorJitter, rng)
    return replace(turned, image=image)


def jitter_scale(sample: Sample, rng: np.random.Generator) -> Sample:
    """Upstream's train geometry (training.md section 5): half the time a random square window.

    Upstream resizes the shorter side to 400, 500 or 600 pixels and cuts a square of 384 to 600.
    Here the window is scaled instead, so that pixels are interpolated once.
    """
    if rng.random() < 0.5:
        return sample
    scale = min(sample.image.shape[:2]) / rng.choice((400, 500, 600))
    side = scale * rng.integers(384, 601)
    return _crop_somewhere(sample, side, side, rng)


def turn(sample: Sample, symmetry: int) -> Sample:
    """One of the eight symmetries of the square: bit 0 mirrors x, bit 1 mirrors y, bit 2 swaps.

    The point x becomes W - 1 - x in a mirror image (training.md section 5), where a box, which has
    its corners between pixels, has W - x. A mirrored left hand is a right one: `Sample.swaps`.
    """
    mirrored = np.array([symmetry & 1, symmetry & 2], np.bool_)  # x, y
    step_x, step_y = np.where(mirrored, -1, 1)
    swapped = -1 if symmetry & 4 else 1
    wh = np.array(sample.image.shape[1::-1], np.float32)

    def moved(picture: NDArray[Any]) -> NDArray[Any]:
        picture = picture[::step_y, ::step_x]
        return np.ascontiguousarray(picture.swapaxes(0, 1) if symmetry & 4 else picture)

    corners = sample.boxes.reshape(-1, 2, 2)
    corners = np.sort(np.where(mirrored, wh - corners, corners)[..., ::swapped], axis=1)
    xy, v = sample.keypoints[..., :2], sample.keypoints[..., 2:]
    xy = np.where(mirrored, wh - 1 - xy, xy)[..., ::swapped]
    points = np.concatenate([xy, v], axis=2) * (v > 0)  # what is not labelled is nowhere
    if sample.swaps is not None and symmetry.bit_count() % 2:
        points = np.take_along_axis(points, sample.swaps[sample.labels, :, None], axis=1)
    return replace(
        sample,
        image=moved(sample.image),
        boxes=corners.reshape(-1, 4),
        keypoints=points,
        pixels=None if sample.pixels is None else moved(sample.pixels),
    )


def crop(
    sample: Sample, left: int, top: int, width: int, height: int, smallest_rest: float = 0.0
) -> Sample:
    """A window in pixels. Boxes are clipped; those without area are dropped. Points outside are
    not labelled.

    smallest_rest: boxes with less than this share of their area left are dropped too.
    """
    boxes = sample.boxes - np.array([left, top, left, top], np.float32)
    clipped = boxes.clip(0, np.array([width, height, width, height], np.float32))
    rest = ((clipped[:, 2:] - clipped[:, :2]) / (boxes[:, 2:] - boxes[:, :2])).prod(axis=1)
    kept = (rest > 0) & (rest >= smallest_rest)
    points = sample.keypoints[kept] - np.array([left, top, 0], np.float32)
    inside = (points[..., :2] >= 0) & (points[..., :2] < [width, height])
    points *= inside.all(axis=2, keepdims=True) & (points[..., 2:] > 0)
    window = np.s_[top : top + height, left : left + width]
    return replace(
        sample,
        image=sample.image[window],
        boxes=clipped[kept],
        labels=sample.labels[kept],
        keypoints=points,
        segmentations=tuple(compress(sample.segmentations, kept)),
        pixels=None if sample.pixels is None else sample.pixels[window],
    )


def _crop_like(
    source_size: tuple[int, int], sample: Sample, window: ScaleCrop, rng: np.random.Generator
) -> Sample:
    aspect = source_size[1] / source_size[0]
    height, width = sample.image.shape[:2]
    width = min(source_size[1] * rng.uniform(*np.sort(window.scale)), width, height * aspect)
    stretch = np.exp(rng.uniform(-window.aspect_jitter, window.aspect_jitter))
    return _crop_somewhere(sample, width, width / aspect * stretch, rng, _SMALLEST_REST)


def _crop_somewhere(
    sample: Sample, width: float, height: float, rng: np.random.Generator, rest: float = 0.0
) -> Sample:
    limits = sample.image.shape[:2]
    high, wide = (max(int(min(pair)), 1) for pair in zip((height, width), limits, strict=True))
    top, left = (int(rng.integers(n)) for n in (limits[0] - high + 1, limits[1] - wide + 1))
    return crop(sample, left, top, wide, high, rest)


def _jitter_colour(image: RGB, jitter: ColourJitter, rng: np.random.Generator) -> RGB:
    """Brightness, contrast, saturation and channel gain as one affine map of the colours."""
    saturation = 1 + jitter.saturation * rng.uniform(-1, 1)
    gain = 1 + jitter.channel_gain * rng.uniform(-1, 1, 3)
    gain *= 1 + jitter.contrast * rng.uniform(-1, 1)
    matrix = (saturation * np.eye(3) + (1 - saturation) / 3) * gain[:, None]
    shift = 127.5 * (1 - matrix.sum(axis=1)) + 255 * jitter.brightness * rng.uniform(-1, 1)
    affine = np.concatenate([matrix, shift[:, None]], axis=1).astype(np.float32)
    coloured: RGB = cv2.transform(image, affine)  # saturates at 0 and 255
    return coloured
