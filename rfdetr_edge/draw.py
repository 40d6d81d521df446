"""Boxes, labels, masks and keypoints on a picture."""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge._optional import opencv
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import InputError
from rfdetr_edge.masks import Masks

Colour = tuple[int, int, int]
_GOLDEN = 0.618034  # neighbouring class ids get hues far apart
_MASK_ALPHA = 0.45
_MIN_POINT_CONFIDENCE = 0.5


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

    Masks tint what lies under them. Keypoints with a confidence over 0.5 are dots, the lines of the
    skeleton join two of them, and an ellipse shows one standard deviation of where the point
    lies: the covariance times the box's share of the image (see `Detections`).
    Lines and letters grow with the picture; the first detection lies on top. OpenCV's letters are
    ASCII, so a class with any other name is labelled by its class id.
    Raises InputError for detections of an image of another size.
    """
    if image.shape[:2] != detections.source_size:
        raise InputError(
            f"the image is (height, width) {image.shape[:2]}, but the detections are those of one "
            f"of {detections.source_size}; draw on that one"
        )
    canvas = image.copy()
    if detections.masks is not None:
        _tint(canvas, detections.masks, detections.class_id)
    if detections.schema is not None:
        for row in reversed(range(len(detections))):
            _draw_keypoints(canvas, detections[row])
    names = detections.class_name
    for row in reversed(range(len(detections))):
        class_id = int(detections.class_id[row])
        name = names[row] if names[row] and names[row].isascii() else f"class {class_id}"
        label = f"{name} {detections.confidence[row]:.2f}"
        _draw_one(canvas, detections.xyxy[row], label, class_colour(class_id))
    return canvas


def _thickness(canvas: NDArray[np.uint8]) -> int:
    height, width = canvas.shape[:2]
    pixels: int = max(1, round(max(height, width) / 500))
    return pixels


def _draw_one(
    canvas: NDArray[np.uint8], xyxy: NDArray[np.float32], label: str, colour: Colour
) -> None:
    cv2: Any = opencv()
    height, width = canvas.shape[:2]
    thickness = _thickness(canvas)
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


def _tint(canvas: NDArray[np.uint8], masks: Masks, class_id: NDArray[np.int64]) -> None:
    for slot, (top, left, crop) in zip(class_id[::-1], masks[::-1].crops(), strict=True):
        window = canvas[top : top + crop.shape[0], left : left + crop.shape[1]]
        covered = window[crop].astype(np.float32)
        colour = np.array(class_colour(int(slot)), np.float32)
        window[crop] = np.rint(covered + _MASK_ALPHA * (colour - covered)).astype(np.uint8)


def _draw_keypoints(canvas: NDArray[np.uint8], one: Detections) -> None:
    """The points of one row."""
    if one.schema is None or one.keypoints is None or one.keypoint_confidence is None:
        return
    cv2: Any = opencv()
    slot, count = int(one.class_id[0]), int(one.keypoint_count[0])
    colour = class_colour(slot)
    height, width = canvas.shape[:2]
    thickness = _thickness(canvas)
    # far outside the picture is far enough: OpenCV counts in 32 bits
    limits = np.array([width, height])
    places = np.rint(one.keypoints[0].clip(-limits, 2 * limits)).astype(int).tolist()
    shown = (one.keypoint_confidence[0] > _MIN_POINT_CONFIDENCE).tolist()
    _draw_spread(canvas, one, [point for point in range(count) if shown[point]])
    for start, end in one.schema.classes[slot].skeleton if count else ():
        if shown[start] and shown[end]:
            cv2.line(canvas, places[start], places[end], colour, thickness, cv2.LINE_AA)
    for point in range(count):
        if shown[point]:
            cv2.circle(canvas, places[point], 2 * thickness + 1, text_colour(colour), cv2.FILLED)
            cv2.circle(canvas, places[point], 2 * thickness, colour, cv2.FILLED)


def _draw_spread(canvas: NDArray[np.uint8], one: Detections, points: list[int]) -> None:
    """An ellipse of one standard deviation for each of the points of one row."""
    if one.keypoints is None or one.covariance is None:
        return
    cv2: Any = opencv()
    height, width = one.source_size
    left, top, right, bottom = one.xyxy[0].astype(np.float64)
    share = (right - left) * (bottom - top) / (height * width)
    colour = class_colour(int(one.class_id[0]))
    limits = np.array([width, height])
    for point in points:
        covariance = one.covariance[0, point].astype(np.float64) * share
        if np.isnan(covariance).any():
            continue
        variances, axes = np.linalg.eigh(covariance)
        radii = np.sqrt(variances.clip(0.0)).clip(max=limits.max())
        centre = one.keypoints[0, point].clip(-limits, 2 * limits)
        angle = np.degrees(np.arctan2(axes[1, 0], axes[0, 0]))
        box = (centre.tolist(), (2 * radii).tolist(), float(angle))
        cv2.ellipse(canvas, box, colour, 1, cv2.LINE_AA)
