"""Annotated masks are the pixels that COCO's own tool finds."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO
from shapes import plain_runs, with_shapes

from rfdetr_edge.rasterize import rasterize


def test_every_form_of_annotation_is_cocos_mask(photos, tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(with_shapes(photos)))
    coco = COCO(path)
    for row in coco.anns.values():
        found = rasterize(row["segmentation"], (480, 640))
        assert (found.dtype, found.shape) == (np.bool_, (480, 640))
        np.testing.assert_array_equal(found, coco.annToMask(row).astype(bool))
        assert found.any()


@given(
    st.lists(
        st.lists(st.floats(-30, 70), min_size=3, max_size=9).map(lambda half: half * 2),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_polygons_and_their_rle_are_one_mask(polygons, height, width):
    size = (height, width)
    expected = rasterize(polygons, size)
    coco = COCO()
    coco.imgs = {1: {"height": height, "width": width}}
    known = coco.annToMask({"image_id": 1, "segmentation": polygons})
    np.testing.assert_array_equal(expected, known.astype(bool))
    rle = mask.encode(np.asfortranarray(expected.view(np.uint8)))
    compressed = {"size": [*size], "counts": rle["counts"].decode()}
    plain = {"size": [*size], "counts": plain_runs(expected)}
    np.testing.assert_array_equal(rasterize(compressed, size), expected)
    np.testing.assert_array_equal(rasterize(plain, size), expected)


@pytest.mark.parametrize("value", [0, 1])
def test_an_empty_and_a_full_mask(value):
    counts = [12 * (1 - value), 12 * value]
    assert (rasterize({"size": [3, 4], "counts": counts}, (3, 4)) == value).all()
