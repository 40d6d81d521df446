"""Masks and keypoints of COCO annotations: what is wrong with an entry, and what it says.

A misfit is None, or the message of what is wrong. Knows nothing of files and lines.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from rfdetr_edge.errors import InputError
from rfdetr_edge.keypoint_schema import ClassKeypoints, class_keypoints

_LARGEST = 1e9  # far over any coordinate in pixels, far under what float arithmetic overflows at


def is_coordinate(value: object) -> bool:
    """Whether a value read from a file is a finite number that can be one in pixels."""
    return type(value) in (int, float) and abs(cast(float, value)) < _LARGEST


def keypoints_misfit(entry: Mapping[str, Any], category: Mapping[str, Any]) -> str | None:
    """Of an annotation's keypoints, for any task: numbers, three for each that its category has."""
    name, points = f"annotation {entry['id']}", entry.get("keypoints") or []
    names = category.get("keypoints") or []
    if points and (not isinstance(points, list) or not isinstance(names, list)):
        return f"keypoints of {name} and of its category must be lists"
    if points and len(points) != 3 * len(names):
        return (
            f"{name} has {len(points)} keypoint numbers; its category names {len(names)} "
            f"keypoints, which need {3 * len(names)}"
        )
    if not all(map(is_coordinate, points)):
        return f"keypoints of {name} must be numbers, not {reprlib.repr(points)}"
    return None


def count_misfit(entry: Mapping[str, Any]) -> str | None:
    """Of an annotation's own count of its keypoints, for any task."""
    counted = marked(entry)
    if counted is None or entry.get("num_keypoints", counted) == counted:
        return None
    return (
        f"annotation {entry['id']} says num_keypoints {entry['num_keypoints']} but marks {counted} "
        "as visible or hidden: taken as counted"
    )


def marked(entry: Mapping[str, Any]) -> int | None:
    """How many keypoints of an annotation are visible or hidden; None where it has none."""
    points = entry.get("keypoints")
    return sum(mark > 0 for mark in points[2::3]) if points else None


def category_keypoints(category: Mapping[str, Any]) -> ClassKeypoints:
    """The points of a COCO category; its `skeleton` numbers them from 1.

    `flip_pairs`, in the form of a skeleton, is no field of COCO's: the points that a mirror image
    swaps, where `left_x` and `right_x` do not say it. Raises InputError for a malformed field.
    """
    owner, names = f"category {category['id']} {category['name']!r}", category.get("keypoints")
    if not isinstance(names or [], list) or not all(type(name) is str for name in names or ()):
        raise InputError(f"keypoints of {owner} must be a list of names, not {reprlib.repr(names)}")
    names = names or []
    if len(set(names)) != len(names):
        raise InputError(f"two keypoints of {owner} have one name: {', '.join(names)}")
    pairs = {}
    for field in ("skeleton", "flip_pairs"):
        pairs[field] = stated = category.get(field) or []
        if not isinstance(stated, list) or not all(_is_pair(pair, len(names)) for pair in stated):
            raise InputError(
                f"{field} of {owner} must be pairs of its keypoints, numbered from 1 to "
                f"{len(names)}, not {reprlib.repr(stated)}"
            )
    skeleton, flips = (tuple((a - 1, b - 1) for a, b in stated) for stated in pairs.values())
    points = class_keypoints(names, skeleton)
    return replace(points, flip_pairs=flips) if "flip_pairs" in category else points


def _is_pair(pair: object, count: int) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
        return False
    return all(type(point) is int and 1 <= point <= count for point in pair)


def category_misfit(category: Mapping[str, Any]) -> str | None:
    """Of a category, for keypoints."""
    try:
        category_keypoints(category)
    except InputError as error:
        return str(error)
    return None


def mark_misfit(entry: Mapping[str, Any]) -> str | None:
    """Of an annotation, for keypoints: v is COCO's."""
    marks = (entry.get("keypoints") or [])[2::3]
    if all(mark in (0, 1, 2) for mark in marks):
        return None
    return (
        f"keypoints of annotation {entry['id']} must be marked 0 (not labelled), 1 (hidden) or "
        f"2 (visible), not {reprlib.repr(marks)}"
    )


def size_misfit(image: Mapping[str, Any]) -> str | None:
    """Of the size that an image is said to have."""
    if all(type(side) is int and side > 0 for side in (image.get("height"), image.get("width"))):
        return None
    return f"{image['file_name']} needs a width and height in whole pixels"


def mask_misfit(entry: Mapping[str, Any], image: Mapping[str, Any] | None) -> str | None:
    """Of an annotation, for masks: polygons or COCO's RLE. image: its own, None for a misfit."""
    name, segmentation = f"annotation {entry['id']}", entry.get("segmentation")
    if not segmentation:
        return f"{name} has no segmentation; add masks, or use a detection variant"
    if image is None:
        return None
    height, width = image["height"], image["width"]
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            return f"RLE of {name} needs the size of its image, [{height}, {width}]"
        runs = _runs(segmentation.get("counts"))
        if runs is None or min(runs, default=0) < 0 or sum(runs) != height * width:
            return f"RLE of {name} needs counts whose runs fill {height} x {width} pixels"
        return None
    reach = 2 * max(height, width)  # far outside, a polygon takes pycocotools memory without end
    if isinstance(segmentation, list) and all(_is_polygon(one, reach) for one in segmentation):
        return None
    return (
        f"segmentation of {name} must be an RLE or polygons [x, y, x, y, x, y, ...] of three "
        f"points or more, in pixels of its image, not {reprlib.repr(segmentation)}"
    )


def _is_polygon(values: object, reach: int) -> bool:
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        return False
    if not set(map(type, values)) <= {int, float}:
        return False
    # NaN makes the sum NaN; whether min and max see it depends on its place
    return -reach < min(values) and max(values) < reach and math.isfinite(sum(values))


def _runs(counts: object) -> Sequence[int] | None:
    """The runs of an RLE, whose counts are a list, or text as in COCO's maskApi.c.

    The text has five bits a character, the lowest first, and signed numbers: from the fourth on
    each is the difference to the run two before. None for counts of neither form.
    """
    if isinstance(counts, list):
        return counts if all(type(count) is int for count in counts) else None
    if not isinstance(counts, str) or not counts.isascii():
        return None
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    (ends,) = np.nonzero(codes < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if not len(ends) or ends[-1] != len(codes) - 1 or lengths.max() > 7:
        return None
    if codes.min() < 0 or codes.max() > 63:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= (codes[ends] & 16 > 0).astype(np.int64) << (5 * lengths)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return cast(list[int], runs.tolist())
