"""Masks of any logits and sizes are those of the plain rule, in every form they are given in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rfdetr_edge.masks import Masks

coco = pytest.importorskip("pycocotools.mask")

sides = st.integers(1, 60)
# few values beside the rest, so that sums of exactly 0, underflow and NaN come up
values = st.one_of(
    st.floats(-4, 4, width=32), st.sampled_from([-1.0, 0.0, 1.0, 2.0**-149, np.nan, np.inf])
)
maps = st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=values)
)
sparse = st.tuples(sides, sides, st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
    lambda key: (
        np.where(
            np.random.default_rng(key[2]).random((2, key[0], key[1])) < key[3] ** 3, 1, -1
        ).astype(np.float32)
        * np.random.default_rng(key[2]).random((2, key[0], key[1]), dtype=np.float32)
    )
)


def plain(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every pixel of the frame by the formula: across first, then down."""

    def taps(cells: int, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scale = float(np.float32(cells) / np.float32(pixels))
        centres = [min(max(scale * (i + 0.5) - 0.5, 0), cells - 1) for i in range(pixels)]
        near = np.array([int(np.float32(centre)) for centre in centres])
        return near, np.minimum(near + 1, cells - 1), np.float32(centres) - np.float32(near)

    (top, bottom, down), (left, right, across) = map(taps, logits.shape[1:], size)
    with np.errstate(invalid="ignore"):
        lines = logits[..., left] * (1 - across) + logits[..., right] * across
        frame = lines[:, top] * (1 - down)[:, None] + lines[:, bottom] * down[:, None]
        return frame > 0


@given(st.one_of(maps, sparse), sides, sides)
def test_a_crop_equals_the_whole_frame(logits: np.ndarray, height: int, width: int) -> None:
    masks = Masks(logits, (height, width))
    expected = plain(logits, (height, width))
    np.testing.assert_array_equal(masks.to_bool(), expected)
    np.testing.assert_array_equal(masks.areas(), expected.sum(axis=(1, 2)))


def test_a_large_crop_equals_the_whole_frame() -> None:
    logits = np.random.default_rng(5).normal(0.5, 1, (1, 13, 17)).astype(np.float32)
    for size in ((700, 900), (40_000, 3), (3, 40_000)):
        np.testing.assert_array_equal(Masks(logits, size).to_bool(), plain(logits, size))


@given(st.one_of(maps, sparse), sides, sides)
def test_the_run_length_code_is_coco_s(logits: np.ndarray, height: int, width: int) -> None:
    expected = [
        coco.encode(np.asfortranarray(mask.view(np.uint8)))
        for mask in plain(logits, (height, width))
    ]
    for mine, theirs in zip(Masks(logits, (height, width)).to_rle(), expected, strict=True):
        assert mine == {"size": theirs["size"], "counts": theirs["counts"].decode()}


@given(sparse, sides, sides)
def test_polygons_are_the_mask_with_its_holes_filled(
    logits: np.ndarray, height: int, width: int
) -> None:
    masks = Masks(logits, (height, width))
    for mask, polygons in zip(masks.to_bool(), masks.to_polygons(), strict=True):
        assert bool(polygons) == mask.any()
        if polygons:
            for polygon in polygons:
                corners = np.reshape(polygon, (-1, 2))
                assert len(corners) >= 4
                assert (corners != np.roll(corners, 1, axis=0)).any(axis=1).all()
            drawn = coco.merge(coco.frPyObjects(polygons, height, width))
            assert drawn == coco.encode(np.asfortranarray(filled(mask).view(np.uint8)))


def filled(mask: np.ndarray) -> np.ndarray:
    """The mask and all that it encloses: what no step sideways, up or down leads out of."""
    outside = np.pad(~mask, 1, constant_values=True)
    reached = np.zeros_like(outside)
    reached[0, 0] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= outside
        if (grown == reached).all():
            return ~reached[1:-1, 1:-1]
        reached = grown
