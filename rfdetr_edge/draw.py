"""Boxes and labels on a picture."""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge._optional import opencv
from rfdetr_edge.detections import Detections

Colour = tuple[int, int, int]
_GOLDEN = 0.618034  # neighbouring class ids get hues far apart


def class_colour(class_id: int) -> Colour:
    """RGB, 0 to 255: always the same for a class id."""
    red, green, blue = colorsys.hsv_to_rgb((class_id * _GOLDEN) % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever reads better on the RGB background."""
    red, green, blue = background
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return (0, 0, 0) if luma > 128 else (255, 255, 255)


def draw(image: NDArray[np.uint8], detections: Detections) -> NDArray[np.uint8]:
    """A copy of the HxWx3 uint8 RGB image with a box and a label for every detection.

    Lines and letters grow with the picture; the most confident detection lies on top. OpenCV's
    letters are ASCII, so a class with any other name is labelled by its class id.
    """
    canvas = image.copy()
    names = detections.class_name
    for row in reversed(range(len(detections))):
        class_id = int(detections.class_id[row])
        name = names[row] if names[row] and names[row].isascii() else f"class {class_id}"
        label = f"{name} {detections.confidence[row]:.2f}"
        _draw_one(canvas, detections.xyxy[row], label, class_colour(class_id))
    return canvas


def _draw_one(
    canvas: NDArray[np.uint8], xyxy: NDArray[np.float32], label: str, colour: Colour
) -> None:
    cv2: Any = opencv()
    height, width = canvas.shape[:2]
    thickness = max(1, round(max(height, width) / 500))
    left, top, right, bottom = (round(float(value)) for value in xyxy)
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, thickness)

    font = cv2.FONT_HERSHEY_SIMPLEX
    letters = min(max(min(height, width) / 40, 9), 40)  # height in pixels
    scale = cv2.getFontScaleFromHeight(font, round(letters), 1)
    stroke = max(1, round(letters / 12))
    (text_width, text_height), baseline = cv2.getTextSize(label, font, scale, stroke)
    box_height = text_height + baseline + thickness
    # above the box; inside it where the picture ends
    label_top = top - box_height if top >= box_height else top
    label_left = max(0, min(left, width - text_width))
    corner = (label_left + text_width, label_top + box_height)
    cv2.rectangle(canvas, (label_left, label_top), corner, colour, cv2.FILLED)
    origin = (label_left, label_top + text_height + thickness)
    cv2.putText(canvas, label, origin, font, scale, text_colour(colour), stroke, cv2.LINE_AA)
