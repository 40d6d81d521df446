"""Copy-paste: objects of rare classes are set into free places of other images.

Cut out as a soft-edged ellipse inside the box, since data sets of boxes have no masks.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.datasets import LabelledImage
from rfdetr_edge.images import RGB, read_image
from trainer.data.transforms import Boxes, Sample

_MOST = 3
_TRIES = 10
_MARGIN = 0.15


class PasteBank:
    """Cut-outs of the classes that have fewer boxes than the average class, equally often each.

    It keeps where they lie; an image is read when a cut-out of it is pasted.
    """

    def __init__(self, images: Sequence[LabelledImage]) -> None:
        labels = np.concatenate([image.labels for image in images])
        classes, counts = np.unique(labels, return_counts=True)
        rare = classes[counts * len(counts) < counts.sum()]
        # class -> images, and boxes (left, top, right, bottom) with their margins
        self._windows: dict[int, list[tuple[LabelledImage, NDArray[np.intp]]]] = {}
        for image in images:
            low, high = image.boxes[:, :2], image.boxes[:, 2:]
            margin = (high - low) * _MARGIN
            low, high = np.floor(low - margin), np.ceil(high + margin)
            inside = ((low >= 0) & (high <= image.source_size[::-1])).all(axis=1)
            windows = np.concatenate([low, high], axis=1).astype(np.intp)
            for index in np.flatnonzero(inside & np.isin(image.labels, rare)):
                places = self._windows.setdefault(int(image.labels[index]), [])
                places.append((image, windows[index]))

    def paste(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with up to three more objects, none of them on another box.

        Raises InputError when the image of a cut-out cannot be read.
        """
        if not self._windows:
            return sample
        image, boxes, labels = sample.image.copy(), sample.boxes, list(sample.labels)
        for _ in range(rng.integers(1, _MOST + 1)):
            label, places = list(self._windows.items())[rng.integers(len(self._windows))]
            source, (left, top, right, bottom) = places[rng.integers(len(places))]
            cutout = read_image(source.path, upright=False)[top:bottom, left:right]
            cutout = np.rot90(cutout, int(rng.integers(4)))
            if (corner := _free_corner(image, cutout, boxes, rng)) is not None:
                boxes = np.concatenate([boxes, _blend(image, cutout, corner)[None]])
                labels.append(np.int64(label))
        nothing = np.zeros((len(boxes), 0, 3), np.float32)
        return Sample(image, boxes, np.array(labels, np.int64), nothing)


def _free_corner(
    image: RGB, cutout: RGB, boxes: Boxes, rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """(left, top) where the cut-out touches no box; None where a few tries find none."""
    wh, limits = np.array(cutout.shape[1::-1]), np.array(image.shape[1::-1])
    if (wh >= limits).any():
        return None
    corners = rng.integers(limits - wh, size=(_TRIES, 1, 2))
    apart = (boxes[:, :2] >= corners + wh) | (boxes[:, 2:] <= corners)  # (tries, boxes, 2)
    free = apart.any(axis=2).all(axis=1)
    return corners[free.argmax(), 0] if free.any() else None


def _blend(image: RGB, cutout: RGB, corner: NDArray[np.int64]) -> NDArray[np.float32]:
    """Sets the cut-out into the image in place and returns the object's box."""
    (left, top), (height, width) = corner, cutout.shape[:2]
    y, x = np.ogrid[:height, :width]
    radius = np.hypot((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1)
    alpha = ((1.0 - radius) / _MARGIN).clip(0, 1)[..., None].astype(np.float32)
    place = image[top : top + height, left : left + width]
    place[:] = cv2.convertScaleAbs(alpha * cutout + (1 - alpha) * place)
    wh = np.array([width, height])
    inset = wh * _MARGIN / (1 + 2 * _MARGIN)
    return np.concatenate([corner + inset, corner + wh - inset]).astype(np.float32)
