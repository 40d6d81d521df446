"""Masks and keypoints for the boxes of a COCO document: polygons, RLE, crowds, hidden points."""

import copy

import numpy as np
from pycocotools import mask

from rfdetr_edge.rasterize import rasterize

POINTS = {
    1: {"keypoints": ["left_rim", "centre", "right_rim"], "skeleton": [[1, 2], [2, 3]]},
    2: {"keypoints": ["left_pole", "right_pole"], "skeleton": []},
}
"""Of categories 1 and 2; others have none."""


def ellipse(bbox: list[float], part: slice = slice(None)) -> list[float]:
    """A polygon that fills a box, or a part of its 24 corners."""
    x, y, w, h = bbox
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    corners = np.stack([x + w / 2 * (1 + np.cos(angle)), y + h / 2 * (1 + np.sin(angle))], axis=1)
    return corners[part].round(2).ravel().tolist()


def with_shapes(document: dict) -> dict:
    """A copy: segmentations as one polygon, two, RLE and plain RLE in turn; two are crowds."""
    document = copy.deepcopy(document)
    sizes = {row["id"]: (row["height"], row["width"]) for row in document["images"]}
    for category in document["categories"]:
        category.update(POINTS.get(category["id"], {}))
    for index, row in enumerate(document["annotations"]):
        row["segmentation"] = _segmentation(row["bbox"], index % 4, sizes[row["image_id"]])
        row["iscrowd"] = int(index in (3, 20))
        x, y, w, h = row["bbox"]
        ways = {1: [x, x + w / 2, x + w - 1], 2: [x + 1, x + w - 2]}.get(row["category_id"], [])
        marks = [(index + point) % 3 for point in range(len(ways))]
        if ways and index % 5:  # every fifth one says nothing of its points
            points = [
                (along, y + h / 2, v) if v else (0, 0, 0)
                for along, v in zip(ways, marks, strict=True)
            ]
            row["keypoints"] = [value for point in points for value in point]
            row["num_keypoints"] = sum(v > 0 for v in marks)
    return document


def _segmentation(bbox: list[float], form: int, size: tuple[int, int]) -> object:
    if form == 0:
        return [ellipse(bbox)]
    if form == 1:
        return [ellipse(bbox, slice(0, 10)), ellipse(bbox, slice(12, 22))]
    if form == 2:
        rle = mask.merge(mask.frPyObjects([ellipse(bbox)], *size))
        return {"size": list(size), "counts": rle["counts"].decode()}
    return {"size": list(size), "counts": plain_runs(rasterize([ellipse(bbox)], size))}


def plain_runs(pixels: np.ndarray) -> list[int]:
    """Uncompressed RLE counts of a (h, w) mask: column by column, beginning with zeros."""
    flat = np.concatenate([[0], pixels.ravel(order="F"), [2]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(changes, prepend=0).tolist()
