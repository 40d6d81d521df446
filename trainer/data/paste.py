"""Copy-paste: objects of rare classes are set into free places of other images.

Cut out as a soft-edged ellipse inside the box, since data sets of boxes have no masks.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.data.transforms import Image, Sample

_MOST = 3
_TRIES = 10
_MARGIN = 0.15


class PasteBank:
    """Cut-outs of the classes that have fewer boxes than the average class, equally often each."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        labels = np.concatenate([sample.labels for sample in samples])
        classes, counts = np.unique(labels, return_counts=True)
        rare = set(classes[counts < counts.mean()].tolist())
        self._cutouts: dict[int, list[Image]] = {label: [] for label in rare}
        for sample in samples:
            for box, label in zip(sample.boxes, sample.labels.tolist(), strict=True):
                if label in rare and (cutout := _cut(sample.image, box)) is not None:
                    self._cutouts[label].append(cutout)
        self._cutouts = {label: cuts for label, cuts in self._cutouts.items() if cuts}

    def paste(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with up to three more objects, none of them on another box."""
        if not self._cutouts:
            return sample
        image = sample.image.copy()
        boxes, labels = list(sample.boxes), list(sample.labels)
        for _ in range(int(rng.integers(1, _MOST + 1))):
            label = list(self._cutouts)[int(rng.integers(len(self._cutouts)))]
            cuts = self._cutouts[label]
            cutout = cuts[int(rng.integers(len(cuts)))]
            cutout = np.rot90(cutout, int(rng.integers(4)))
            corner = _free_corner(image, cutout, np.array(boxes).reshape(-1, 4), rng)
            if corner is None:
                continue
            boxes.append(_blend(image, cutout, *corner))
            labels.append(np.int64(label))
        return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


def _cut(image: Image, box: NDArray[np.float32]) -> Image | None:
    """The box and a margin around it; None where the margin leaves the image."""
    margin = (box[2:] - box[:2]) * _MARGIN
    left, top = np.floor(box[:2] - margin).astype(int)
    right, bottom = np.ceil(box[2:] + margin).astype(int)
    height, width = image.shape[:2]
    if left < 0 or top < 0 or right > width or bottom > height:
        return None
    return image[top:bottom, left:right].copy()


def _free_corner(
    image: Image, cutout: Image, boxes: NDArray[np.float32], rng: np.random.Generator
) -> tuple[int, int] | None:
    height, width = cutout.shape[:2]
    if height >= image.shape[0] or width >= image.shape[1]:
        return None
    for _ in range(_TRIES):
        left = int(rng.integers(image.shape[1] - width))
        top = int(rng.integers(image.shape[0] - height))
        apart = (
            (boxes[:, 0] >= left + width)
            | (boxes[:, 2] <= left)
            | (boxes[:, 1] >= top + height)
            | (boxes[:, 3] <= top)
        )
        if apart.all():
            return left, top
    return None


def _blend(image: Image, cutout: Image, left: int, top: int) -> NDArray[np.float32]:
    """Sets the cut-out into the image in place and returns the object's box."""
    height, width = cutout.shape[:2]
    y, x = np.ogrid[:height, :width]
    radius = np.hypot((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1)
    alpha = ((1.0 - radius) / _MARGIN).clip(0, 1)[..., None].astype(np.float32)
    place = image[top : top + height, left : left + width]
    place[:] = cv2.convertScaleAbs(alpha * cutout + (1 - alpha) * place)
    inner = np.array([width, height]) * _MARGIN / (1 + 2 * _MARGIN)
    return np.array(
        [left + inner[0], top + inner[1], left + width - inner[0], top + height - inner[1]],
        np.float32,
    )
