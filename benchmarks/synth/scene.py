"""Where everything lies: parts thrown on a belt under a camera, and what of each is visible.

Geometry only, and exact: a part covers the pixels that its outline covers by half or more, and is
visible where no later part covers them. What the picture shows is drawn from the same coverage.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.synth.shapes import KINDS, Points, Shape

SUPERSAMPLING = 2
RAIL = 0.1  # width of the rail at each side of the belt, of the photo's side across it
_MIN_VISIBLE = 0.15
_HEAPED = 0.35  # share of parts that lie near another one; the rest keep away
_FRACTION_BITS = 6
_FINE = 8  # samples a pixel's side that decide what it covers: OpenCV fills a half sample too wide
_CLEAR = 2  # pixels kept around a part in its window

Coverage = NDArray[np.uint8]
Slices = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Part:
    """A part in the photo.

    kind: index into KINDS. to_photo: 3x3, (u, v, 1) to photo pixels, where pixel i spans i to
    i + 1. length: of one unit, in pixels. angle: of the u axis, in radians from x to y.
    origin: x, y of its window, which may reach beyond the photo.
    alpha: (h, w), how much of each pixel of the window it covers. coverage: the same supersampled,
    0 or 255.
    """

    kind: int
    shape: Shape
    to_photo: NDArray[np.float64]
    length: float
    angle: float
    origin: tuple[int, int]
    coverage: Coverage
    alpha: NDArray[np.float32]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(h, w): the pixels of the window that the part covers by half or more."""
        covered: NDArray[np.bool_] = self.alpha >= 0.5
        return covered

    def in_window(self, points: Points) -> Points:
        """(n, 2) of u, v as x, y of the supersampled window, where pixel i spans i to i + 1."""
        return (project(self.to_photo, points) - self.origin) * SUPERSAMPLING


@dataclass(frozen=True, slots=True)
class Scene:
    """A photo to be.

    size: (height, width). vertical: whether the belt runs up and down, else left and right.
    camera: 3x3, from the photo as seen from straight above to the photo.
    owner: (height, width) int16, which of `parts` each pixel shows, -1 for none.
    """

    size: tuple[int, int]
    vertical: bool
    camera: NDArray[np.float64]
    parts: tuple[Part, ...]
    owner: NDArray[np.int16]

    def keypoints(self, number: int) -> NDArray[np.float64]:
        """(K, 3): x, y and v of a part's keypoints. The centre of the top left pixel is (0, 0).

        v is 2 where the part is visible, 1 where another one hides it, and 0 with x = y = 0
        outside the photo.
        """
        part = self.parts[number]
        xy = project(part.to_photo, part.shape.keypoints)
        x, y = np.floor(xy).astype(int).T
        height, width = self.size
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        shown = self.owner[y * inside, x * inside] == number
        rows: NDArray[np.float64] = np.column_stack([xy - 0.5, 1 + shown]) * inside[:, None]
        return rows


def project(transform: NDArray[np.float64], points: Points) -> Points:
    """(n, 2) points through a 3x3 projective transform."""
    ends = points @ transform[:, :2].T + transform[:, 2]
    projected: Points = ends[:, :2] / ends[:, 2:]
    return projected


def fill(image: Coverage, outline: Points, value: int) -> None:
    """Fills a polygon, x and y where pixel i spans i to i + 1, without smooth edges."""
    corners = np.rint((outline - 0.5) * 2**_FRACTION_BITS).astype(np.int32)
    cv2.fillPoly(image, [corners], value, cv2.LINE_8, _FRACTION_BITS)


def make_scene(rng: Generator, size: tuple[int, int]) -> Scene:
    """2 to 8 parts at random, later ones on top of earlier ones.

    Those of which under 15 % would be visible are taken away again.
    """
    vertical = bool(rng.random() < 0.4)
    camera = _camera(rng, size)
    centres: list[NDArray[np.float64]] = []
    parts: list[Part] = []
    zoom = rng.uniform(0.85, 1.1) * min(size[1] / 640, size[0] / 480)
    for _ in range(rng.integers(2, 9)):
        kind = int(rng.integers(len(KINDS)))
        length = rng.uniform(*KINDS[kind].lengths) * zoom
        places = [_place(rng, size, length, vertical) for _ in range(4)]
        choose = min if rng.random() < _HEAPED else max
        centre = choose(places, key=lambda xy: _nearest(centres, xy))
        centres.append(centre)
        shape = KINDS[kind].build(rng)
        parts.append(_part(kind, shape, camera, centre, length, rng.uniform(0, 2 * np.pi)))
    kept = _visible_parts(size, parts)
    return Scene(size, vertical, camera, kept, _owner(size, kept))


def _nearest(centres: list[NDArray[np.float64]], xy: NDArray[np.float64]) -> float:
    return min((float(np.hypot(*(xy - centre))) for centre in centres), default=0.0)


def _camera(rng: Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """Tilted a little: each corner of the view from above lies up to 5 % outside the photo."""
    height, width = size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    outwards = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width, height)
    shift = rng.uniform(0, 0.05, (4, 2)) * outwards
    camera: NDArray[np.float64] = cv2.getPerspectiveTransform(
        corners, (corners + shift).astype(np.float32)
    )
    return camera


def _place(
    rng: Generator, size: tuple[int, int], length: float, vertical: bool
) -> NDArray[np.float64]:
    """The x, y of a part's centre: anywhere along the belt, clear of the rails across it."""
    height, width = size
    along, across = (height, width) if vertical else (width, height)
    margin = min(RAIL * across + 0.5 * length, 0.45 * across)
    place = np.array([rng.uniform(0, along), rng.uniform(margin, across - margin)])
    return place[::-1] if vertical else place


def _part(
    kind: int,
    shape: Shape,
    camera: NDArray[np.float64],
    centre: NDArray[np.float64],
    length: float,
    angle: float,
) -> Part:
    cos, sin = length * np.cos(angle), length * np.sin(angle)
    to_photo = camera @ np.array([[cos, -sin, centre[0]], [sin, cos, centre[1]], [0, 0, 1]])
    extent = np.concatenate([project(to_photo, solid.outline) for solid in shape.solids])
    low = np.floor(extent.min(axis=0)).astype(int) - _CLEAR
    high = np.ceil(extent.max(axis=0)).astype(int) + _CLEAR
    width, height = (int(side) for side in high - low)
    fine = np.zeros((height * _FINE, width * _FINE), np.uint8)
    for solid in shape.solids:
        fill(fine, (project(to_photo, solid.outline) - low) * _FINE, 255)
    for hole in shape.holes:
        fill(fine, (project(to_photo, hole) - low) * _FINE, 0)
    alpha, samples = (
        cv2.resize(fine, (width * scale, height * scale), interpolation=cv2.INTER_AREA)
        for scale in (1, SUPERSAMPLING)
    )
    return Part(
        kind,
        shape,
        to_photo,
        length,
        angle,
        origin=(int(low[0]), int(low[1])),
        coverage=np.where(samples > 127, np.uint8(255), np.uint8(0)),
        alpha=alpha / np.float32(255),
    )


def _visible_parts(size: tuple[int, int], parts: list[Part]) -> tuple[Part, ...]:
    """Those of which enough is visible, beside the border and the parts on top of them."""
    shown = np.bincount(_owner(size, parts).ravel() + 1, minlength=len(parts) + 1)[1:]
    return tuple(
        part
        for part, pixels in zip(parts, shown, strict=True)
        if pixels >= _MIN_VISIBLE * part.covered.sum()
    )


def _owner(size: tuple[int, int], parts: list[Part] | tuple[Part, ...]) -> NDArray[np.int16]:
    owner = np.full(size, -1, np.int16)
    for number, part in enumerate(parts):
        photo, window = common(size, part.origin, part.covered.shape)
        owner[photo][part.covered[window]] = number
    return owner


def common(
    size: tuple[int, int], origin: tuple[int, int], window: tuple[int, ...]
) -> tuple[Slices, Slices]:
    """The rows and columns that photo and window share: in the photo, and in the window.

    size, window: (height, width). origin: x, y of the window in the photo.
    """
    pairs = []
    for side, start, length in zip(size, origin[::-1], window, strict=False):
        low, high = max(start, 0), max(min(start + length, side), max(start, 0))
        pairs.append((slice(low, high), slice(low - start, high - start)))
    return (pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1])
