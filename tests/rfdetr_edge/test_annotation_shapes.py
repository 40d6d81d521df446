"""Masks and keypoints of annotations: what is wrong with one is said, what is sound is read."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask

from rfdetr_edge.annotation_shapes import category_keypoints, category_misfit, mask_misfit

IMAGE = {"height": 12, "width": 16}
TRIANGLE = [1, 2, 9.5, 2, 5, 8]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "annotation 5 has no segmentation; add masks, or use a detection variant"),
        ([], "annotation 5 has no segmentation"),
        ({}, "annotation 5 has no segmentation"),
        (TRIANGLE, "segmentation of annotation 5 must be an RLE or polygons"),
        ([TRIANGLE, []], "must be an RLE or polygons"),
        ([TRIANGLE[:4]], "must be an RLE or polygons .* of three points or more"),
        ([[*TRIANGLE, 1]], "must be an RLE or polygons"),
        ([[*TRIANGLE, 1, "2"]], "must be an RLE or polygons"),
        ([[math.nan, *TRIANGLE, 2]], "must be an RLE or polygons"),
        ([[*TRIANGLE, 2, math.nan]], "must be an RLE or polygons"),
        ([[*TRIANGLE, 2, -math.inf]], "must be an RLE or polygons"),
        ([[*TRIANGLE, 10**400, 2]], "must be an RLE or polygons"),
        ([[*TRIANGLE, 2, 40]], "in pixels of its image"),
        ("polygon", "must be an RLE or polygons"),
        ({"counts": [192]}, r"RLE of annotation 5 needs the size of its image, \[12, 16\]"),
        ({"size": [16, 12], "counts": [192]}, "needs the size of its image"),
        ({"size": [12, 16]}, "needs counts whose runs fill 12 x 16 pixels"),
        ({"size": [12, 16], "counts": [190]}, "needs counts whose runs fill 12 x 16 pixels"),
        ({"size": [12, 16], "counts": [200, -8]}, "needs counts whose runs fill"),
        ({"size": [12, 16], "counts": [191.5, 0.5]}, "needs counts whose runs fill"),
        ({"size": [12, 16], "counts": []}, "needs counts whose runs fill"),
        ({"size": [12, 16], "counts": ""}, "needs counts whose runs fill"),
        ({"size": [12, 16], "counts": "P6P"}, "needs counts whose runs fill"),
        ({"size": [12, 16], "counts": "oooooooooooooooo0"}, "needs counts whose runs fill"),
        ({"size": [12, 16], "counts": "\x01\u20ac"}, "needs counts whose runs fill"),
    ],
)
def test_an_odd_segmentation_is_named(segmentation, message):
    found = mask_misfit({"id": 5, "segmentation": segmentation}, IMAGE)
    assert found is not None
    assert re.search(message, found)


def test_polygons_may_reach_over_the_edge():
    assert mask_misfit({"id": 5, "segmentation": [TRIANGLE, [-9, 0, 20, 0, 3, 31]]}, IMAGE) is None


@given(arrays.arrays(np.uint8, (12, 16), elements=st.integers(0, 1)), st.booleans())
def test_every_rle_of_cocos_own_tool_is_sound(pixels, flat):
    if flat:  # long runs, whose differences are negative numbers of several characters
        pixels = pixels[:, :1].repeat(16, axis=1)
    counts = mask.encode(np.asfortranarray(pixels))["counts"].decode()
    entry = {"id": 1, "segmentation": {"size": [12, 16], "counts": counts}}
    assert mask_misfit(entry, IMAGE) is None
    entry["segmentation"]["size"] = [13, 16]
    assert mask_misfit(entry, {"height": 13, "width": 16}) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keypoints": "left"}, "keypoints of category 1 'cell' must be a list of names"),
        ({"keypoints": ["left", 2]}, "must be a list of names"),
        ({"keypoints": ["left", "left"]}, "two keypoints of category 1 'cell' have one name"),
        ({"skeleton": [[0, 1]]}, "skeleton of category 1 'cell' must be .* from 1 to 2, not"),
        ({"skeleton": [[1, 3]]}, "skeleton of category 1 'cell' must be pairs"),
        ({"skeleton": [[2, 2]]}, "skeleton of category 1 'cell' must be pairs"),
        ({"skeleton": [[1, 2, 1]]}, "skeleton of category 1 'cell' must be pairs"),
        ({"skeleton": 12}, "skeleton of category 1 'cell' must be pairs"),
        ({"flip_pairs": [[1, 2.0]]}, "flip_pairs of category 1 'cell' must be pairs"),
        ({"flip_pairs": [[1, 2], [2, 1]]}, "flip_pairs names a keypoint twice"),
    ],
)
def test_odd_points_of_a_category_are_named(fields, message):
    category = {"id": 1, "name": "cell", "keypoints": ["left", "right"], **fields}
    found = category_misfit(category)
    assert found is not None
    assert re.search(message, found)


def test_a_category_says_its_points():
    plain = {"id": 3, "name": "part", "keypoints": ["left_end", "right_end", "middle"]}
    points = category_keypoints({**plain, "skeleton": [[1, 3], [3, 2]]})
    assert points.names == ("left_end", "right_end", "middle")
    assert points.skeleton == ((0, 2), (2, 1))
    assert points.flip_pairs == ((0, 1),)
    assert points.sigmas == (0.05,) * 3
    assert category_keypoints({**plain, "flip_pairs": [[1, 3]]}).flip_pairs == ((0, 2),)
    assert category_keypoints({"id": 4, "name": "bolt", "keypoints": None}).names == ()
