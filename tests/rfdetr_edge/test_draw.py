from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from rfdetr_edge import Detections, InputError, Masks
from rfdetr_edge.classes import named_classes
from rfdetr_edge.draw import class_colour, draw, text_colour
from rfdetr_edge.keypoint_schema import KeypointSchema, class_keypoints

CLASSES = named_classes("contiguous", ["cell", "größe"])


def detections(boxes, confidence=None, class_id=None, size=(240, 320)):
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.array(confidence or [0.9] * count, np.float32),
        np.array(class_id or [0] * count, np.int64),
        CLASSES,
        size,
    )


def grey(height, width):
    return np.full((height, width, 3), 100, np.uint8)


def contrast(colour, other):
    """WCAG 2 contrast ratio, 1 to 21."""

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance([c / 255 for c in x]) for x in (colour, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_box_is_drawn_in_the_colour_of_its_class_on_a_copy():
    image = grey(240, 320)
    drawn = draw(image, detections([[50, 60, 200, 180]]))
    assert (image == 100).all()
    for y, x in ((180, 120), (120, 50), (120, 200)):  # bottom, left, right
        assert tuple(drawn[y, x]) == class_colour(0)
    assert tuple(drawn[120, 120]) == (100, 100, 100)


def test_nothing_detected_leaves_the_picture_as_it_is():
    np.testing.assert_array_equal(draw(grey(240, 320), detections([])), grey(240, 320))


def test_the_most_confident_box_lies_on_top():
    box = [50, 60, 200, 180]
    drawn = draw(grey(240, 320), detections([box, box], [0.9, 0.6], [1, 0]))
    assert tuple(drawn[180, 120]) == class_colour(1)


def test_neighbouring_classes_differ_and_labels_can_be_read():
    colours = [class_colour(slot) for slot in range(91)]
    assert len(set(colours)) == 91
    for one, other in pairwise(colours):
        assert np.abs(np.subtract(one, other)).max() > 100
    assert all(contrast(colour, text_colour(colour)) > 3 for colour in colours)


@pytest.mark.parametrize("size", [(480, 640), (2160, 3840)])
def test_labels_grow_with_the_picture(size):
    height, width = size
    box = [width // 4, height // 2, width // 2, height * 3 // 4]
    drawn = draw(grey(*size), detections([box], size=size))
    column = (drawn[: height // 2 - 4, width // 4 + 1] != 100).any(axis=1)
    assert height / 50 < column.sum() < height / 15


@pytest.mark.parametrize("box", [[0, 0, 320, 240], [310, 230, 320, 240], [0, 0, 0, 0]])
@pytest.mark.parametrize("class_id", [0, 1])
def test_labels_stay_inside_the_picture(box, class_id):
    drawn = draw(grey(240, 320), detections([box], class_id=[class_id]))
    label = (drawn == class_colour(class_id)).all(axis=2)
    assert label.sum() > 200  # the filled background of the label


def test_a_picture_of_one_pixel_is_no_trouble():
    assert draw(grey(1, 1), detections([[0, 0, 1, 1]], size=(1, 1))).shape == (1, 1, 3)


def test_a_mask_tints_what_lies_under_it_and_nothing_else():
    logits = np.full((1, 24, 32), -1.0, np.float32)
    logits[0, 10:14, 12:18] = 1.0  # y 100 to 140, x 120 to 180
    found = replace(detections([[50, 60, 200, 180]]), masks=Masks(logits, (240, 320)))
    drawn = draw(grey(240, 320), found)
    inside = found.mask[0]
    assert (drawn[120, 150] == np.rint(100 + 0.45 * (np.array(class_colour(0)) - 100.0))).all()
    assert (drawn[inside] != 100).any(axis=1).all()
    np.testing.assert_array_equal(
        drawn[~inside], draw(grey(240, 320), detections([[50, 60, 200, 180]]))[~inside]
    )


SCHEMA = KeypointSchema((class_keypoints(["start", "middle", "end"], ((0, 1), (1, 2))),))


def pointed(points, confidence, variance=0.0):
    covariance = np.zeros((1, 3, 2, 2), np.float32)
    covariance[..., [0, 1], [0, 1]] = variance
    return replace(
        detections([[50, 60, 200, 180]]),
        schema=SCHEMA,
        keypoints=np.array([points], np.float32),
        keypoint_confidence=np.array([confidence], np.float32),
        keypoint_precision=np.zeros((1, 3, 3), np.float32),
        covariance=covariance,
    )


def changed(found):
    """Where keypoints were drawn: (H, W) bool."""
    plain = draw(grey(240, 320), detections(found.xyxy))
    return (draw(grey(240, 320), found) != plain).any(axis=2)


def test_points_are_dots_and_the_skeleton_joins_them():
    drawn = changed(pointed([[80, 100], [120, 100], [160, 140]], [0.9, 0.9, 0.9]))
    for x, y in ((80, 100), (120, 100), (160, 140), (100, 100), (140, 120)):
        assert drawn[y, x]
    assert not drawn[150:].any()


def test_a_point_that_cannot_be_found_is_not_drawn_nor_joined():
    drawn = changed(pointed([[80, 100], [120, 100], [160, 140]], [0.9, 0.9, 0.5]))
    assert drawn[100, 100]
    assert not drawn[110:].any()


def test_an_ellipse_is_one_standard_deviation_of_a_point():
    points = [[150, 120], [0, 0], [0, 0]]
    share = 150 * 120 / (240 * 320)
    drawn = changed(pointed(points, [0.9, 0, 0], variance=30**2 / share))
    for x, y in ((180, 120), (120, 120), (150, 150), (150, 90)):
        assert drawn[y - 1 : y + 2, x - 1 : x + 2].any()
    assert not changed(pointed(points, [0.9, 0, 0]))[120, 170:].any()
    assert not changed(pointed(points, [0.9, 0, 0], variance=np.nan))[120, 170:].any()


@pytest.mark.parametrize("variance", [0.0, 1e38, np.nan])
@pytest.mark.parametrize("place", [-1e30, 0, 319.6, 1e30])
def test_points_anywhere_are_no_trouble(place, variance):
    found = pointed([[place, place]] * 3, [0.9] * 3, variance)
    assert draw(grey(240, 320), found).shape == (240, 320, 3)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"\(120, 160\), but the detections .* \(240, 320\)"):
        draw(grey(120, 160), detections([[50, 60, 200, 180]]))
