"""What holds for every input: bounds of boxes, the ranking, the resize."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rfdetr_edge.classes import named_classes
from rfdetr_edge.keypoint_schema import numbered_schema
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.postprocess import RawOutputs, best_pairs, postprocess
from rfdetr_edge.preprocess import preprocess, preprocess_batch

CLASSES = named_classes("background-last", ["a", "b"])

sides = st.integers(1, 90)
specs = st.builds(InputSpec, st.tuples(sides, sides), st.booleans())
images = st.tuples(sides, sides, st.integers(0, 2**32 - 1)).map(
    lambda key: np.random.default_rng(key[2]).integers(0, 256, (key[0], key[1], 3), dtype=np.uint8)
)
# few values, so that most of them tie
scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, math.nan, 1.0]), min_size=1, max_size=60)


@given(scores, st.integers(1, 70))
def test_best_pairs_equal_a_sort_of_everything(values: list[float], count: int) -> None:
    def rank(position: int) -> tuple[bool, float, int]:
        value = values[position]
        return not math.isnan(value), 0.0 if math.isnan(value) else -value, position

    expected = sorted(range(len(values)), key=rank)[:count]
    assert best_pairs(np.array(values, np.float32), count).tolist() == expected


@given(
    arrays(np.float32, (2, 4, 4), elements=st.floats(-4, 4, width=32)),
    arrays(np.float32, (2, 4, 3), elements=st.floats(-120, 120, width=32)),
    st.integers(1, 15),
    st.floats(-1, 1),
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)
def test_detections_lie_in_the_image_in_descending_order(
    dets: np.ndarray, labels: np.ndarray, num_select: int, threshold: float, size: tuple[int, int]
) -> None:
    height, width = size
    for found in postprocess(
        RawOutputs(dets, labels),
        source_sizes=[size, size],
        classes=CLASSES,
        num_select=num_select,
        threshold=threshold,
    ):
        assert len(found) <= min(num_select, 12)
        assert (found.confidence > np.float32(threshold)).all()
        assert (np.diff(found.confidence) <= 0).all()
        x0, y0, x1, y1 = found.xyxy.T
        assert ((x0 >= 0) & (x0 <= x1) & (x1 <= width)).all()
        assert ((y0 >= 0) & (y0 <= y1) & (y1 <= height)).all()


@given(
    arrays(np.float32, (3, 4, 4), elements=st.floats(-1, 2, width=32)),
    arrays(np.float32, (3, 4, 3), elements=st.floats(-9, 9, width=32)),
)
def test_a_batch_of_outputs_equals_its_images(dets: np.ndarray, labels: np.ndarray) -> None:
    sizes = [(10, 20), (300, 200), (7, 7)]

    def run(rows: slice) -> list[dict]:
        found = postprocess(
            RawOutputs(dets[rows], labels[rows]),
            source_sizes=sizes[rows],
            classes=CLASSES,
            num_select=5,
            threshold=0.1,
        )
        return [image.to_dict() for image in found]

    assert run(slice(None)) == [run(slice(row, row + 1))[0] for row in range(3)]


@given(
    arrays(np.float32, (1, 3, 6, 8), elements=st.floats(width=32)),
    arrays(np.float32, (1, 3, 3), elements=st.floats(-9, 9, width=32)),
)
def test_whatever_the_keypoints_are_confidences_stay_in_range(
    keypoints: np.ndarray, labels: np.ndarray
) -> None:
    schema = numbered_schema([3, 2])
    (found,) = postprocess(
        RawOutputs(np.full((1, 3, 4), 0.5, np.float32), labels, keypoints=keypoints),
        source_sizes=[(300, 200)],
        classes=CLASSES,
        num_select=9,
        threshold=-1.0,
        schema=schema,
    )
    assert ((found.confidence >= 0) & (found.confidence < 1)).all()
    finite = np.isfinite(found.covariance).all(axis=(2, 3))
    assert np.isnan(found.covariance[~finite]).all()
    xx, xy, yy = (found.covariance[finite][:, i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
    assert ((xx >= 0) & (yy >= 0)).all()
    assert (np.abs(xy) <= np.sqrt(xx.astype(np.float64) * yy) * 1.0001).all()


@given(sides, sides, st.integers(0, 255), specs)
def test_constant_image_stays_constant(
    height: int, width: int, value: int, spec: InputSpec
) -> None:
    tensor = preprocess(np.full((height, width, 3), value, np.uint8), spec)
    expected = (value / 255 - np.array(spec.mean)) / np.array(spec.std)
    assert np.abs(tensor - expected[:, None, None]).max() < 1e-5


@given(images, specs)
def test_resize_invents_no_colours(image: np.ndarray, spec: InputSpec) -> None:
    tensor = preprocess(image, spec)
    mean, std = np.array(spec.mean)[:, None, None], np.array(spec.std)[:, None, None]
    levels = (tensor * std + mean) * 255
    low, high = image.min(axis=(0, 1))[:, None, None], image.max(axis=(0, 1))[:, None, None]
    assert ((levels > low - 1e-3) & (levels < high + 1e-3)).all()


@given(images, specs)
def test_both_axes_are_resized_alike(image: np.ndarray, spec: InputSpec) -> None:
    height, width = spec.resolution
    across = preprocess(image.transpose(1, 0, 2), InputSpec((width, height), spec.antialias))
    np.testing.assert_allclose(across.transpose(0, 2, 1), preprocess(image, spec), atol=1e-5)


@given(st.lists(images, min_size=1, max_size=3), specs)
def test_a_batch_of_images_equals_its_images(several: list[np.ndarray], spec: InputSpec) -> None:
    batch = preprocess_batch(several, spec)
    for image, tensor in zip(several, batch, strict=True):
        np.testing.assert_array_equal(tensor, preprocess(image, spec))
