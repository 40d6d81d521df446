"""Annotated masks as pixels, by pycocotools: the same pixels that COCO's evaluation compares."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask


def rasterize(
    segmentation: Sequence[Sequence[float]] | Mapping[str, Any], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """(h, w) bool pixels of a COCO segmentation, polygons or an RLE, that `for_task` found sound.

    size: (height, width) of the image.
    """
    if isinstance(segmentation, Mapping):
        plain = isinstance(segmentation["counts"], list)
        rle = mask.frPyObjects(segmentation, *size) if plain else segmentation
    else:
        rle = mask.merge(mask.frPyObjects(segmentation, *size))
    return np.ascontiguousarray(mask.decode(rle)).view(np.bool_)
