"""Pictures of what the network is fed: the first batches of a loader with what they teach."""

from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.draw import class_colour
from rfdetr_edge.images import write_image
from rfdetr_edge.metadata import IMAGENET_MEAN, IMAGENET_STD
from trainer.boxes import cxcywh_to_xyxy
from trainer.targets import Target

_TILES = 3  # a row and a column
_SIDE = 800  # of a tile in pixels; three are upstream's 12 inches at 200 dots an inch


def save_grids(loader: DataLoader[Any], folder: Path, split: str, classes: ClassTable) -> None:
    """Writes `<split>_batch<i>_grid.jpg`, i from 0, for the loader's first three batches.

    Each shows up to nine images of the batch on 2400 x 2400 pixels, with their boxes, the number
    and name of each box's class, masks as a tint, and keypoints as dots, hidden ones as rings.
    Raises OSError when writing fails.
    """
    for index, batch in enumerate(islice(loader, 3)):
        grid = np.full((_TILES, _SIDE, _TILES, _SIDE, 3), 255, np.uint8)
        for place, image in enumerate(batch.images[: _TILES**2]):
            row, column = divmod(place, _TILES)
            grid[row, :, column] = _tile(image, batch.targets[place], classes)
        picture = grid.reshape(_TILES * _SIDE, _TILES * _SIDE, 3)
        write_image(folder / f"{split}_batch{index}_grid.jpg", picture)


def _tile(image: Tensor, target: Target, classes: ClassTable) -> NDArray[np.uint8]:
    pixels = image.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN
    tile = cv2.resize((pixels * 255).round().clip(0, 255).astype(np.uint8), (_SIDE, _SIDE))
    corners = (cxcywh_to_xyxy(target.boxes) * _SIDE).round().int().tolist()
    for row, (left, top, right, bottom) in enumerate(corners):
        label = int(target.labels[row])
        colour = class_colour(label)
        if target.masks is not None:
            mask = target.masks[row].numpy().view(np.uint8)
            inside = cv2.resize(mask, (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST) > 0
            tile[inside] = (tile[inside] * 0.6 + np.array(colour) * 0.4).astype(np.uint8)
        for x, y, v in [] if target.keypoints is None else target.keypoints[row].tolist():
            if v:
                centre = (round(x * _SIDE), round(y * _SIDE))
                cv2.circle(tile, centre, 6, colour, cv2.FILLED if v > 1 else 2, cv2.LINE_AA)
        cv2.rectangle(tile, (left, top), (right, bottom), colour, 2)
        name = classes.names[label]
        text = f"{label} {name}" if name.isascii() else str(label)  # OpenCV's letters are ASCII
        origin = (left + 4, max(top - 6, 18))
        cv2.putText(tile, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, 2, cv2.LINE_AA)
    return np.asarray(tile, np.uint8)
