"""The belt as seen from straight above: rubber, what runs over it has left, and the side rails."""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.synth.scene import RAIL

Image = NDArray[np.float32]  # (h, w, 3) RGB or (h, w), 0 to 1

_RUBBERS = (
    (0.11, 0.11, 0.12),
    (0.18, 0.18, 0.18),
    (0.30, 0.30, 0.29),
    (0.09, 0.19, 0.15),
    (0.11, 0.16, 0.23),
)
_PAINTS = ((0.62, 0.63, 0.64), (0.45, 0.47, 0.5), (0.75, 0.6, 0.12), (0.16, 0.3, 0.42))


def noise(rng: Generator, size: tuple[int, int], cell: tuple[float, float]) -> Image:
    """Smooth noise (h, w) of deviation 1 or a little less; cell: height, width of a blob."""
    shape = tuple(max(2, int(np.ceil(side / step))) for side, step in zip(size, cell, strict=True))
    coarse = rng.standard_normal(shape, dtype=np.float32)
    if shape == size:
        return coarse
    smooth: Image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
    return smooth


def draw_belt(rng: Generator, size: tuple[int, int]) -> Image:
    """A belt that runs along the width: (h, w, 3)."""
    light = 1 + 0.10 * noise(rng, size, (1, 1)) + 0.06 * noise(rng, size, (3, 4))
    light += 0.07 * noise(rng, size, (60, 90)) + 0.05 * noise(rng, size, (5, 400))
    light *= _pattern(rng, size)
    for _ in range(rng.integers(0, 3)):
        _seam(rng, light)
    _scratches(rng, light, int(rng.integers(8, 40)))
    rubber = np.array(_RUBBERS[rng.integers(len(_RUBBERS))], np.float32)
    rubber = rubber * np.float32(rng.uniform(0.8, 1.5))
    picture = light[:, :, None] * rubber
    for _ in range(rng.integers(0, 5)):
        _stain(rng, picture)
    _specks(rng, picture, int(rng.integers(10, 60)))
    return picture


def _pattern(rng: Generator, size: tuple[int, int]) -> Image:
    """The relief pressed into the rubber: none, ribs across, or a fabric's weave."""
    y, x = (np.arange(side, dtype=np.float32) for side in size)
    depth = np.float32(rng.uniform(0.06, 0.16))
    step = rng.uniform(7, 16)
    kind = rng.integers(3)
    across, along = np.sin(2 * np.pi / step * x), np.sin(2 * np.pi / step * y)
    if kind == 0:
        return np.ones(size, np.float32)
    if kind == 1:
        ribs = np.clip(across * 2.5, -1, 1)
        return np.broadcast_to(1 + depth * ribs[None, :], size)
    weave: Image = 1 + depth * across[None, :] * along[:, None]
    return weave


def _seam(rng: Generator, light: Image) -> None:
    """Where two ends of the belt meet, a little oblique, sometimes stitched."""
    height, width = light.shape
    x, lean = rng.uniform(0, width), rng.uniform(-0.25, 0.25) * height
    ends = [(int(x - lean), 0), (int(x + lean), height)]
    cover = np.zeros_like(light)
    cv2.line(cover, *ends, 1.0, int(rng.integers(2, 5)), cv2.LINE_AA)
    light *= 1 - 0.5 * cover
    light += 0.25 * np.roll(cover, 3, axis=1)
    if rng.random() < 0.5:
        for y in range(6, height, 14):
            at = int(x + lean * (2 * y / height - 1))
            cv2.line(light, (at - 9, y), (at + 9, y), 1.9, 2, cv2.LINE_AA)


def _scratches(rng: Generator, light: Image, count: int) -> None:
    """Most run the way the belt moves."""
    height, width = light.shape
    cover = np.zeros_like(light)
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle, length = rng.normal(0, 0.12), rng.uniform(20, 0.5 * width)
        end = (int(x + length * np.cos(angle)), int(y + length * np.sin(angle)))
        cv2.line(cover, (int(x), int(y)), end, rng.uniform(-0.2, 0.35), 1, cv2.LINE_AA)
    light += cover


def _stain(rng: Generator, picture: Image) -> None:
    """Oil, dark and ragged."""
    height, width = picture.shape[:2]
    radius = rng.uniform(0.03, 0.11) * min(height, width)
    left, top = int(rng.uniform(0, width - 2 * radius)), int(rng.uniform(0, height - 2 * radius))
    side = int(2 * radius)
    away = np.linspace(-1, 1, side, dtype=np.float32) ** 2
    far = np.sqrt(away[:, None] + away[None, :]) + 0.2 * noise(rng, (side, side), (16, 16))
    dark = np.float32(rng.uniform(0.2, 0.5)) * np.clip(1.6 - 2.2 * far, 0, 1)
    picture[top : top + side, left : left + side] *= (1 - dark)[:, :, None]


def _specks(rng: Generator, picture: Image, count: int) -> None:
    """Dust and small metal chips."""
    height, width = picture.shape[:2]
    for x, y, shade, length in rng.uniform((0, 0, 0.2, 0), (width, height, 0.65, 5), (count, 4)):
        angle = rng.uniform(0, np.pi)
        start = (int(x), int(y))
        end = (int(x + length * np.cos(angle)), int(y + length * np.sin(angle)))
        cv2.line(picture, start, end, (shade, shade, shade * 0.95), 1, cv2.LINE_AA)


def draw_rails(rng: Generator, size: tuple[int, int]) -> tuple[Image, Image]:
    """Both rails of a belt that runs along the width: (h, w, 3), and how much they cover (h, w)."""
    height, width = size
    picture = np.zeros((height, width, 3), np.float32)
    cover = np.zeros(size, np.float32)
    paint = np.array(_PAINTS[rng.integers(len(_PAINTS))], np.float32)
    thick = int(RAIL * height * rng.uniform(0.55, 0.95))
    profile = _profile(rng, thick)
    grain = (
        1 + 0.04 * noise(rng, (thick, width), (1, 40)) + 0.02 * noise(rng, (thick, width), (1, 1))
    )
    rail = (profile[:, None] * grain)[:, :, None] * paint
    if rng.random() < 0.3:
        _hazard(rail, profile)
    pitch, first = rng.uniform(70, 160), rng.uniform(0, 70)
    for x in np.arange(first, width, pitch):
        _screw(rail, int(x), thick // 2, max(3, thick // 6))
    picture[:thick] = rail
    picture[height - thick :] = rail[::-1] * np.float32(rng.uniform(0.75, 1.1))
    cover[:thick] = cover[height - thick :] = 1
    return picture, cover


def _profile(rng: Generator, thick: int) -> Image:
    """Brightness across an extruded rail: a slot, and an edge that falls to the belt."""
    across = np.linspace(0, 1, thick, dtype=np.float32)
    profile: Image = 0.8 + 0.25 * np.sin(3 * across + np.float32(rng.uniform(0, 3)))
    slot = rng.uniform(0.2, 0.4)
    profile[(across > slot) & (across < slot + 0.1)] *= 0.35
    profile[-3:] = (1.15, 0.5, 0.25)
    return profile


def _hazard(rail: Image, profile: Image) -> None:
    """Yellow and black stripes along the rail."""
    thick, width = rail.shape[:2]
    y, x = np.ogrid[:thick, :width]
    black = (x + y) % 44 < 22
    colours = np.where(
        black[:, :, None], np.float32(0.08), np.array((0.85, 0.68, 0.06), np.float32)
    )
    rail[:] = colours * profile[:, None, None]


def _screw(rail: Image, x: int, y: int, radius: int) -> None:
    cv2.circle(rail, (x + 1, y + 2), radius + 1, (0.12, 0.12, 0.12), -1, cv2.LINE_AA)
    cv2.circle(rail, (x, y), radius, (0.5, 0.5, 0.52), -1, cv2.LINE_AA)
    cv2.circle(rail, (x, y), max(1, radius // 2), (0.15, 0.15, 0.16), -1, cv2.LINE_AA)
