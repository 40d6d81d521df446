"""How the eight numbers of a point are read; goldens are in test_postprocess.py."""

import numpy as np
import pytest

from rfdetr_edge.keypoint_schema import KeypointSchema, class_keypoints
from rfdetr_edge.keypoints import pixel_covariance, raw_points

# three points, none, one; the network has slot 3 too, which the schema does not know
SCHEMA = KeypointSchema(
    (class_keypoints(["a", "b", "c"]), class_keypoints([]), class_keypoints(["tip"]))
)
SIZE = (100, 200)
EVERY = np.ones(4, bool)


@pytest.fixture
def points():
    """One row of each slot, of two queries."""
    keypoints = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    return raw_points(keypoints, np.array([0, 1, 1, 0]), np.array([0, 1, 2, 3]), SCHEMA), keypoints


def test_each_row_reads_the_columns_of_its_own_class(points):
    raw, keypoints = points
    decoded = raw.decoded(EVERY, SIZE)
    np.testing.assert_allclose(decoded.keypoints[0], keypoints[0, :3, :2] * [200, 100], rtol=1e-6)
    np.testing.assert_allclose(decoded.keypoints[2, 0], keypoints[1, 6, :2] * [200, 100], rtol=1e-6)
    np.testing.assert_array_equal(decoded.keypoint_precision[2, 0], keypoints[1, 6, 4:7])
    expected = 1 / (1 + np.exp(-keypoints[0, :3, 2]))
    np.testing.assert_allclose(decoded.keypoint_confidence[0], expected, rtol=1e-6)


def test_columns_without_a_point_are_zeros_and_nan(points):
    decoded = points[0].decoded(EVERY, SIZE)
    absent = np.array([[False] * 3, [True] * 3, [False, True, True], [True] * 3])
    assert (decoded.keypoints[absent] == 0).all()
    np.testing.assert_array_equal(decoded.keypoint_confidence == 0, absent)
    np.testing.assert_array_equal(np.isnan(decoded.keypoint_precision).all(axis=2), absent)
    np.testing.assert_array_equal(np.isnan(decoded.covariance).all(axis=(2, 3)), absent)


def test_the_covariance_is_the_inverse_of_the_precision_in_pixels():
    precision = np.random.default_rng(1).normal(size=(5, 3, 3)).astype(np.float32)
    found = pixel_covariance(precision, SIZE)
    scale = np.diag([200.0, 100.0])
    for (log_l11, l21, log_l22), covariance in zip(
        precision.reshape(-1, 3).astype(np.float64), found.reshape(-1, 2, 2), strict=True
    ):
        lower = np.array([[np.exp(log_l11), 0.0], [l21, np.exp(log_l22)]])
        expected = scale @ np.linalg.inv(lower @ lower.T) @ scale
        np.testing.assert_allclose(covariance, expected, rtol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "precision",
    [
        [np.nan, 0, 0],
        [0, np.inf, 0],
        [-np.inf, 0, 0],
        [400, 0, 0],
        [0, 0, 800],
        [-60, 0, -60],  # finite, but not in float32
    ],
)
def test_what_is_no_finite_number_is_nan_as_a_whole_and_its_neighbour_is_not(precision):
    pair = np.array([[precision, [0, 0, 0]]], np.float32)
    found = pixel_covariance(pair, SIZE)
    assert np.isnan(found[0, 0]).all()
    np.testing.assert_array_equal(found[0, 1], [[200**2, 0], [0, 100**2]])
    assert not np.signbit(found[0, 1]).any()


def test_fusion_equals_the_formula_written_out(points):
    raw, keypoints = points
    confidence = np.array([0.9, 0.6, 0.3, 0.5], np.float32)
    expected = []
    for score, rows in zip(confidence, ([0, 1, 2], [], [6], None), strict=True):
        if rows is None:
            expected.append(score)
            continue
        chosen = keypoints[0 if rows[:1] == [0] else 1, rows].astype(np.float64)
        l11, l21, l22 = np.exp(chosen[:, 4]), chosen[:, 5], np.exp(chosen[:, 6])
        trace = l11**-2 + l22**-2 + (l21 / (l11 * l22)) ** 2
        weight = 1 / (1 + np.exp(-chosen[:, 2]))
        mean = (trace * weight).sum() / weight.sum() if rows else 1.0
        odds = score * mean**-0.2
        expected.append(odds / (1 + odds))
    np.testing.assert_allclose(raw.fused(confidence, 0.2), expected, rtol=1e-5)
    assert raw.fused(confidence, 0.2).dtype == np.float32
    np.testing.assert_array_equal(raw.fused(confidence, 0.0), confidence)


@pytest.mark.parametrize(
    ("precision", "expected"), [([400, 0, 400], 1.0), ([-400, 0, -400], 0.0), ([-np.inf, 0, 0], 0)]
)
def test_extreme_uncertainty_gives_the_ends_of_the_range(precision, expected):
    schema = KeypointSchema((class_keypoints(["only"]),))
    keypoints = np.zeros((1, 1, 8), np.float32)
    keypoints[0, 0, 4:7] = precision
    fused = raw_points(keypoints, np.array([0]), np.array([0]), schema).fused(
        np.array([0.5], np.float32), 0.2
    )
    assert fused[0] < 1.0
    np.testing.assert_allclose(fused, expected, atol=1e-6)
