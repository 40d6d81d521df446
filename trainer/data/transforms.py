"""Augmentation of training images. It ends in `rfdetr_edge.preprocess`, as everything does.

The random generator is always handed in, so an image drawn with the same seed is the same image.
Only `turn` and `crop` move pixels: whatever else an image carries is moved in these two.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.datasets import LabelledImage
from rfdetr_edge.images import read_image
from trainer.data.augmentation import Augmentation, ColourJitter, ScaleCrop

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]

_QUARTER_TURNS = (0, 5, 3, 6)  # the symmetries that turn by 0, 90, 180 and 270 degrees
_SMALLEST_REST = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """image: (h, w, 3) uint8 RGB; boxes: (n, 4) float32 xyxy pixels; labels: (n,) int64 slots."""

    image: Image
    boxes: Boxes
    labels: NDArray[np.int64]


def read_sample(labelled: LabelledImage) -> Sample:
    """An image with its boxes. Raises InputError when it cannot be decoded."""
    return Sample(read_image(labelled.path, upright=False), labelled.boxes, labelled.labels)


def augment(sample: Sample, augmentation: Augmentation, rng: np.random.Generator) -> Sample:
    """Flips and turns, then crop, blur and colour, each as often as its p says."""
    mirrors = (augmentation.HorizontalFlip, augmentation.VerticalFlip, augmentation.Transpose)
    symmetry = sum(1 << bit for bit, mirror in enumerate(mirrors) if rng.random() < mirror.p)
    turned = turn(sample, symmetry)
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
    """Upstream's train geometry: half the time a random square window, else the whole image.

    Upstream resizes the shorter side to 400, 500 or 600 pixels, cuts a square of 384 to 600 (as
    far as the image reaches), and squashes it (training.md section 5). Here the window is scaled
    instead and cut from the source: the squash follows anyway, and pixels are interpolated once.
    """
    if rng.random() < 0.5:
        return sample
    scale = min(sample.image.shape[:2]) / rng.choice((400, 500, 600))
    side = scale * rng.integers(384, 601)
    return _crop_somewhere(sample, side, side, rng)


def turn(sample: Sample, symmetry: int) -> Sample:
    """One of the eight symmetries of the square: bit 0 mirrors x, bit 1 mirrors y, bit 2 swaps."""
    image, (left, top, right, bottom) = sample.image, sample.boxes.T
    height, width = image.shape[:2]
    if symmetry & 1:
        image, left, right = image[:, ::-1], width - right, width - left
    if symmetry & 2:
        image, top, bottom = image[::-1], height - bottom, height - top
    if symmetry & 4:
        image, left, top, right, bottom = image.transpose(1, 0, 2), top, left, bottom, right
    boxes = np.stack([left, top, right, bottom], axis=1)
    return Sample(np.ascontiguousarray(image), boxes, sample.labels)


def crop(
    sample: Sample, left: int, top: int, width: int, height: int, smallest_rest: float = 0.0
) -> Sample:
    """A window in pixels. Boxes are clipped; those without area are dropped.

    smallest_rest: boxes with less than this share of their area left are dropped too.
    """
    boxes = sample.boxes - np.array([left, top, left, top], np.float32)
    clipped = boxes.clip(0, np.array([width, height, width, height], np.float32))
    rest = ((clipped[:, 2:] - clipped[:, :2]) / (boxes[:, 2:] - boxes[:, :2])).prod(axis=1)
    kept = (rest > 0) & (rest >= smallest_rest)
    image = sample.image[top : top + height, left : left + width]
    return Sample(image, clipped[kept], sample.labels[kept])


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


def _jitter_colour(image: Image, jitter: ColourJitter, rng: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and channel gain as one affine map of the colours."""
    saturation = 1 + jitter.saturation * rng.uniform(-1, 1)
    gain = 1 + jitter.channel_gain * rng.uniform(-1, 1, 3)
    gain *= 1 + jitter.contrast * rng.uniform(-1, 1)
    matrix = (saturation * np.eye(3) + (1 - saturation) / 3) * gain[:, None]
    shift = 127.5 * (1 - matrix.sum(axis=1)) + 255 * jitter.brightness * rng.uniform(-1, 1)
    affine = np.concatenate([matrix, shift[:, None]], axis=1).astype(np.float32)
    coloured: Image = cv2.transform(image, affine)  # saturates at 0 and 255
    return coloured
