from itertools import pairwise

import numpy as np
import pytest

from rfdetr_edge import Detections
from rfdetr_edge.classes import named_classes
from rfdetr_edge.draw import class_colour, draw, text_colour

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
