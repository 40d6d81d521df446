"""COCO-format folders: `train|valid|test/_annotations.coco.json` with the images beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.classes import ClassTable, named_classes
from rfdetr_edge.errors import InputError
from rfdetr_edge.evaluation import read_annotations

ANNOTATIONS = "_annotations.coco.json"


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """One image of a split.

    boxes: (n, 4) float32 xyxy pixels, clipped to the image; labels: (n,) int64 slots.
    source_size: (height, width) in pixels.
    """

    path: Path
    image_id: int
    source_size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CocoSplit:
    """One split: its annotation file and its images, in the file's order."""

    annotations: Path
    images: tuple[LabelledImage, ...]


def read_classes(dataset: Path) -> ClassTable:
    """The class table of a data set, from its train split, for use with all splits.

    Slots are the categories in order of their ids; categories that only group others (named as
    another's supercategory, without annotations of their own) are left out. The last slot is
    background. Raises InputError when the split is missing or malformed.
    """
    path, document = _read(dataset, "train")
    used = {row["category_id"] for row in document["annotations"]}
    groups = {row.get("supercategory") for row in document["categories"]}
    kept = sorted(
        (row for row in document["categories"] if row["id"] in used or row["name"] not in groups),
        key=lambda row: row["id"],
    )
    if not kept:
        raise InputError(f"{path} lists no categories; a detector needs at least one class")
    if len({row["name"] for row in kept}) < len(kept):
        raise InputError(f"{path} gives two categories the same name; rename one of them")
    return named_classes(
        "background-last", [row["name"] for row in kept], [row["id"] for row in kept]
    )


def read_split(dataset: Path, name: str, classes: ClassTable) -> CocoSplit:
    """The images of `train`, `valid` or `test` with their boxes.

    Crowd annotations and boxes that are empty after clipping are dropped. Raises InputError when
    the split or an image is missing, a category is not in `classes`, or no box is left.
    """
    path, document = _read(dataset, name)
    slots = {category_id: slot for slot, category_id in enumerate(classes.category_ids)}
    rows: dict[int, list[dict[str, Any]]] = {row["id"]: [] for row in document["images"]}
    for row in document["annotations"]:
        if row["category_id"] not in slots or row["image_id"] not in rows:
            raise InputError(
                f"{path}: annotation {row.get('id')} names an image or a category that the "
                "train split does not know"
            )
        if not row.get("iscrowd", 0):
            rows[row["image_id"]].append(row)
    images = tuple(
        _labelled(path.parent, row, rows[row["id"]], slots) for row in document["images"]
    )
    if not any(len(image.labels) for image in images):
        raise InputError(f"{path} has no image with a box: nothing to learn, or to measure by")
    return CocoSplit(path, images)


def _labelled(
    folder: Path,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    slots: dict[int | None, int],
) -> LabelledImage:
    path = folder / image["file_name"]
    if not path.is_file():
        raise InputError(f"{path} is listed in {folder / ANNOTATIONS} but does not exist")
    height, width = (image.get(side) for side in ("height", "width"))
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise InputError(f"{folder / ANNOTATIONS} gives {path.name} no width and height in pixels")
    xywh = np.array([row["bbox"] for row in annotations], np.float32).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
    labels = np.array([slots[row["category_id"]] for row in annotations], np.int64)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return LabelledImage(path, image["id"], (height, width), boxes[kept], labels[kept])


def _read(dataset: Path, split: str) -> tuple[Path, dict[str, Any]]:
    path = dataset / split / ANNOTATIONS
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; a data set is a folder with train, valid and test, each "
            f"holding {ANNOTATIONS} and its images"
        )
    return path, read_annotations(path)
