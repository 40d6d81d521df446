"""What an image teaches."""

from typing import NamedTuple

from torch import Tensor


class Target(NamedTuple):
    """Ground truth of one image; a named tuple, so that Lightning moves it to the device.

    boxes: (n, 4) float32 cxcywh in 0-1 of the resized image; labels: (n,) int64 slots.
    image_id: the data set's id of the image; source_size: its (height, width) before resizing.
    masks: (n, h, w) bool of the resized image, h and w being the mask grid or larger.
    keypoints: (n, K, 3) float32, x and y in 0-1 and v: 0 not labelled, 1 hidden, 2 visible.
    Both are None where the task has none.
    """

    boxes: Tensor
    labels: Tensor
    image_id: int
    source_size: tuple[int, int]
    masks: Tensor | None = None
    keypoints: Tensor | None = None
