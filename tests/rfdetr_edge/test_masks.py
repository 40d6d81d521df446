"""Masks: the reference's values, every form they are given in, and what is refused."""

import tracemalloc
from collections.abc import Callable, Sized

import golden_outputs
import numpy as np
import pytest
from golden_outputs import GOLDEN

from rfdetr_edge.errors import InputError
from rfdetr_edge.masks import Masks

CASES = {case["name"]: case for case in golden_outputs.CASES}
coco = pytest.importorskip("pycocotools.mask")


def _disc(radius: float, y: float = 10, x: float = 12) -> np.ndarray:
    """(1, 20, 24) logits of a disc."""
    rows, columns = np.mgrid[:20, :24]
    distance = np.hypot(rows - y, columns - x)
    return (radius - distance).astype(np.float32)[None]


def _encoded(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()


@pytest.mark.parametrize(
    ("name", "image"), [("seg", 0), ("seg", 1), ("seg_native_masks", 0), ("seg_zero", 0)]
)
def test_masks_are_the_reference_s(name: str, image: int) -> None:
    logits = GOLDEN[f"{name}/in_logits"][image]
    scores = 1 / (1 + np.exp(-logits.ravel()))
    best = np.argsort(-scores, kind="stable")[: CASES[name]["num_select"]]
    maps = GOLDEN[f"{name}/in_masks"][image][best // logits.shape[1]]
    count, _, height, width = GOLDEN[f"{name}/raw{image}_masks_shape"].tolist()
    packed = np.unpackbits(GOLDEN[f"{name}/raw{image}_masks_packed"], axis=1)
    expected = packed[:, : height * width].reshape(count, height, width).astype(bool)
    size = (height, width)
    if CASES[name]["upsample_masks"]:
        assert size == tuple(GOLDEN[f"{name}/in_sizes"][image])
    found = Masks(maps, size).to_bool()
    # a logit within 1e-5 of 0 may be on either side
    unsure = Masks(maps + np.float32(1e-5), size).to_bool()
    unsure ^= Masks(maps - np.float32(1e-5), size).to_bool()
    assert len(found) == count > 0
    np.testing.assert_array_equal(found[~unsure], expected[~unsure])
    assert unsure.mean() < 1e-3


def test_positions_are_rounded_as_the_reference_rounds_them() -> None:
    # of 192 cells and 3840 pixels, PyTorch 2.13 samples pixel 2570 at 128.0250092, not at 128.025
    logits = (np.arange(192) - 128.025005).astype(np.float32)
    (mask,) = Masks(logits[None, None], (1, 3840)).to_bool()
    np.testing.assert_array_equal(np.flatnonzero(mask[0]), np.arange(2570, 3840))


@pytest.mark.parametrize("size", [(20, 24), (97, 131), (7, 5), (1, 1), (1080, 1920)])
def test_a_mask_without_positive_logits_is_empty(size: tuple[int, int]) -> None:
    logits = np.stack([_disc(-1)[0], np.full((20, 24), np.nan, np.float32), 0 * _disc(1)[0]])
    masks = Masks(logits, size)
    assert [(top, left, crop.shape) for top, left, crop in masks.crops()] == [(0, 0, (0, 0))] * 3
    assert not masks.to_bool().any()
    assert masks.areas().tolist() == [0, 0, 0]
    assert [code["counts"] for code in masks.to_rle()] == [_encoded(np.zeros(size, bool))] * 3
    assert masks.to_polygons() == [[], [], []]


@pytest.mark.parametrize("size", [(20, 24), (97, 131), (7, 5), (1, 1), (1080, 1920)])
def test_a_mask_of_the_whole_frame(size: tuple[int, int]) -> None:
    masks = Masks(_disc(100), size)
    height, width = size
    assert masks.to_bool().all()
    assert masks.areas().tolist() == [height * width]
    assert masks.to_rle() == [{"size": [height, width], "counts": _encoded(np.ones(size, bool))}]
    ((outline,),) = masks.to_polygons()
    corners = {(0, 0), (width, 0), (width, height), (0, height)}
    assert len(outline) == 8
    assert set(zip(outline[::2], outline[1::2], strict=True)) == corners


@pytest.mark.parametrize("cell", [(0, 11), (19, 11), (8, 0), (8, 23), (0, 0), (19, 23), (8, 11)])
@pytest.mark.parametrize("scale", [1, 6])
def test_one_cell_anywhere(cell: tuple[int, int], scale: int) -> None:
    logits = np.full((1, 20, 24), -1, np.float32)
    logits[0, cell[0], cell[1]] = 1
    masks = Masks(logits, (20 * scale, 24 * scale))
    (mask,) = masks.to_bool()
    row, column = np.nonzero(mask)
    assert {(y // scale, x // scale) for y, x in zip(row, column, strict=True)} == {cell}
    assert masks.areas().tolist() == [len(row)]
    assert masks.to_rle()[0]["counts"] == _encoded(mask)
    ((outline,),) = masks.to_polygons()
    assert (min(outline[::2]), max(outline[::2])) == (column.min(), column.max() + 1)
    assert (min(outline[1::2]), max(outline[1::2])) == (row.min(), row.max() + 1)


def test_only_the_surroundings_of_positive_cells_are_computed() -> None:
    ((top, left, crop),) = Masks(_disc(2.5), (200, 240)).crops()
    assert (top, left) == (75, 95)  # cells 8 to 12 and 10 to 14, and one cell's reach beyond
    assert crop.shape == (60, 60)


@pytest.mark.parametrize("form", [Masks.to_rle, Masks.to_polygons, Masks.areas])
def test_no_whole_frame_is_held(form: Callable[[Masks], Sized]) -> None:
    masks = Masks(np.repeat(_disc(4), 30, axis=0), (1080, 1920))
    tracemalloc.start()
    try:
        result = form(masks)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(result) == 30
    assert peak - held < 1080 * 1920


def test_polygons_keep_parts_and_lose_holes() -> None:
    ring = np.minimum(_disc(7), -_disc(3))
    parts = np.maximum(_disc(3, 4, 4), _disc(4, 13, 17))
    masks = Masks(np.concatenate([ring, parts]), (120, 144))
    assert [len(polygons) for polygons in masks.to_polygons()] == [1, 2]
    for polygons, shape in zip(masks.to_polygons(), [_disc(7), parts], strict=True):
        drawn = coco.merge(coco.frPyObjects(polygons, 120, 144))
        assert [drawn["counts"].decode()] == [
            code["counts"] for code in Masks(shape, (120, 144)).to_rle()
        ]


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        (1, [1]),
        (np.int64(-1), [3]),
        (slice(1, 3), [1, 2]),
        ([3, 0, 0], [3, 0, 0]),
        (np.array([True, False, False, True]), [0, 3]),
        (np.array([2, 1]), [2, 1]),
        ([], []),
        (slice(0, 0), []),
    ],
)
def test_rows_are_selected(rows: object, kept: list[int]) -> None:
    logits = np.concatenate([_disc(radius) for radius in (1, 2, 3, 4)])
    selected = Masks(logits, (40, 48))[rows]
    assert selected.source_size == (40, 48)
    assert len(selected) == len(kept)
    np.testing.assert_array_equal(selected.logits, logits[kept])


def test_iterating_gives_one_mask_at_a_time() -> None:
    masks = Masks(np.concatenate([_disc(2), _disc(4)]), (40, 48))
    assert [one.areas().tolist() for one in masks] == [[area] for area in masks.areas()]


def test_no_masks() -> None:
    masks = Masks(np.empty((0, 20, 24), np.float32), (40, 48))
    assert masks.to_bool().shape == (0, 40, 48)
    assert masks.areas().shape == (0,)
    assert masks.areas().dtype == np.int64
    assert masks.to_rle() == masks.to_polygons() == list(masks.crops()) == []


@pytest.mark.parametrize(
    ("logits", "size", "message"),
    [
        (np.zeros((20, 24), np.float32), (40, 48), r"not \(20, 24\) and float32"),
        (np.zeros((1, 1, 20, 24), np.float32), (40, 48), r"not \(1, 1, 20, 24\)"),
        (np.zeros((1, 0, 24), np.float32), (40, 48), "at least one cell"),
        (np.zeros((1, 20, 24), np.float16), (40, 48), "and float16"),
        (np.zeros((1, 20, 24), bool), (40, 48), "and bool"),
        (np.zeros((1, 20, 24), np.float32), (40, 0), r"source_size .* not \(40, 0\)"),
        (np.zeros((1, 20, 24), np.float32), (-1, 48), r"source_size .* not \(-1, 48\)"),
    ],
)
def test_what_are_no_masks_is_refused(
    logits: np.ndarray, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Masks(logits, size)
