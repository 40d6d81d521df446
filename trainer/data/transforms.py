"""Augmentation of training images. It ends in `rfdetr_edge.preprocess`, as everything does.

Works on uint8 RGB arrays and xyxy pixel boxes; the random generator is always handed in, so an
image drawn with the same seed is the same image.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]

_WHOLE_IMAGE = 0.4
_CROP_WIDTH = (0.5, 1.0)
_ASPECT_JITTER = 0.2
_SMALLEST_REST = 0.25
_BLUR = 0.15


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """image: (h, w, 3) uint8 RGB; boxes: (n, 4) float32 xyxy pixels; labels: (n,) int64 slots."""

    image: Image
    boxes: Boxes
    labels: Labels


def augment(sample: Sample, rng: np.random.Generator) -> Sample:
    """Random symmetry, crop, blur and colour."""
    height, width = sample.image.shape[:2]
    turned = turn(sample, int(rng.integers(8)))
    upright = turned.image.shape[:2] == (height, width)
    if not upright or rng.random() >= _WHOLE_IMAGE:
        turned = _random_crop(turned, width * rng.uniform(*_CROP_WIDTH), width / height, rng)
    image = turned.image
    if rng.random() < _BLUR:
        image = cv2.GaussianBlur(image, (0, 0), sigmaX=rng.uniform(0.4, 1.5))
    return Sample(_jitter_colour(image, rng), turned.boxes, turned.labels)


def turn(sample: Sample, symmetry: int) -> Sample:
    """One of the eight symmetries of the square: bit 0 mirrors x, bit 1 mirrors y, bit 2 swaps."""
    image, boxes = sample.image, sample.boxes
    height, width = image.shape[:2]
    if symmetry & 1:
        image = image[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    if symmetry & 2:
        image = image[::-1]
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
    if symmetry & 4:
        image = image.transpose(1, 0, 2)
        boxes = boxes[:, [1, 0, 3, 2]]
    return Sample(np.ascontiguousarray(image), boxes, sample.labels)


def _random_crop(
    sample: Sample, crop_width: float, aspect: float, rng: np.random.Generator
) -> Sample:
    """A window of the source's aspect ratio, so that squashing stretches it as at test time."""
    height, width = sample.image.shape[:2]
    crop_width = min(crop_width, width, height * aspect)
    crop_height = crop_width / aspect * np.exp(rng.uniform(-_ASPECT_JITTER, _ASPECT_JITTER))
    crop_w, crop_h = int(crop_width), int(min(crop_height, height))
    left = int(rng.integers(width - crop_w + 1))
    top = int(rng.integers(height - crop_h + 1))
    return crop(sample, left, top, crop_w, crop_h)


def crop(sample: Sample, left: int, top: int, width: int, height: int) -> Sample:
    """A window in pixels. Boxes are clipped; those with under a quarter left are dropped."""
    origin = np.array([left, top, left, top], np.float32)
    boxes = sample.boxes - origin
    clipped = boxes.clip(0, np.array([width, height, width, height], np.float32))
    rest = _area(clipped) / _area(boxes).clip(min=1e-6)
    kept = rest >= _SMALLEST_REST
    image = sample.image[top : top + height, left : left + width]
    return Sample(image, clipped[kept], sample.labels[kept])


def _area(boxes: Boxes) -> NDArray[np.float32]:
    area: NDArray[np.float32] = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    return area


def _jitter_colour(image: Image, rng: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and channel gain as one affine map of the colours."""
    saturation = rng.uniform(0.7, 1.3)
    gain = rng.uniform(0.92, 1.08, 3) * rng.uniform(0.8, 1.2)
    grey = np.full((3, 3), 1 / 3)
    matrix = (saturation * np.eye(3) + (1 - saturation) * grey) * gain[:, None]
    middle = 127.5
    shift = middle - matrix.sum(axis=1) * middle + rng.uniform(-20, 20)
    affine = np.concatenate([matrix, shift[:, None]], axis=1).astype(np.float32)
    coloured: Image = cv2.transform(image, affine)  # saturates at 0 and 255
    return coloured
