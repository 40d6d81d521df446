"""What a part looks like: a height field of bevels and reliefs, lit as brushed metal."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.synth.belt import Image, noise
from benchmarks.synth.scene import SUPERSAMPLING, Part, fill

_METALS = (
    (0.66, 0.67, 0.69),  # steel
    (0.74, 0.75, 0.76),  # bright zinc
    (0.46, 0.47, 0.50),  # forged steel
    (0.70, 0.60, 0.36),  # yellow zinc, brass
)
_RUST = (0.42, 0.2, 0.08)


@dataclass(frozen=True, slots=True)
class Light:
    """A lamp far away, and its softer mirror image in the metal.

    towards: unit vector (x, y, z) from the belt to the lamp; z points to the camera.
    """

    towards: NDArray[np.float64]
    strength: float
    ambient: float


def make_light(rng: Generator) -> Light:
    """From any side, 35 to 65 degrees above the belt."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(35, 65))
    flat = np.cos(elevation)
    towards = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    return Light(towards, rng.uniform(0.55, 0.85), rng.uniform(0.3, 0.5))


def draw_part(rng: Generator, part: Part, light: Light) -> Image:
    """The part's window at the photo's scale: (h, w, 3); only where it covers is it right."""
    size = part.coverage.shape
    grain = _brushed(rng, part, size)
    height = _height(rng, part) + np.float32(rng.uniform(0.08, 0.3)) * grain
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    lx, ly, lz = light.towards.astype(np.float32)
    diffuse = np.clip((lz - lx * slope_x - ly * slope_y) * up, 0, 1)
    halfway = light.towards + np.array([0, 0, 1])
    hx, hy, hz = (halfway / np.linalg.norm(halfway)).astype(np.float32)
    half = np.clip((hz - hx * slope_x - hy * slope_y) * up, 0, 1)
    gloss = half ** np.float32(rng.uniform(18, 60))
    # the hall above, mirrored: bright and dark bands that the slope of the surface runs through
    tilt = (lx * slope_x + ly * slope_y) * up
    sweep = _sweep(rng, part, size)
    hall = 0.5 + 0.5 * np.sin(np.float32(rng.uniform(2.5, 4.5)) * (sweep - 1.3 * tilt))
    metal = np.array(_METALS[rng.integers(len(_METALS))], np.float32)
    metal = metal * np.float32(rng.uniform(0.75, 1.1))
    tone = light.ambient * (0.3 + 1.1 * hall) + light.strength * diffuse
    tone *= 1 + 0.06 * grain
    rgb = tone[:, :, None] * _surface(rng, part, size, metal)
    rgb += (np.float32(rng.uniform(0.5, 1.2)) * gloss)[:, :, None]
    height, width = part.alpha.shape
    drawn: Image = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    return drawn


def _height(rng: Generator, part: Part) -> Image:
    """Of the surface, in supersampled pixels: rounded edges, reliefs, dents."""
    unit = part.length * SUPERSAMPLING
    height = np.zeros(part.coverage.shape, np.float32)
    for solid in part.shape.solids:
        piece = np.zeros_like(part.coverage)
        fill(piece, part.in_window(solid.outline), 255)
        depth = cv2.distanceTransform(piece & part.coverage, cv2.DIST_L2, 3)
        bevel = np.float32(max(solid.bevel * unit, 2.0))
        rounded = 1 - np.clip(depth / bevel, 0, 1)
        np.maximum(height, bevel * np.sqrt(1 - rounded**2), out=height)
    layer = np.zeros_like(height)
    for relief in part.shape.reliefs:
        region = np.zeros_like(part.coverage)
        fill(region, part.in_window(relief.outline), 1)
        layer[region > 0] += np.float32(relief.height * unit)
    height += cv2.GaussianBlur(layer, (0, 0), 1.2)
    for _ in range(rng.integers(0, 4)):
        _dent(rng, height, unit)
    return height


def _dent(rng: Generator, height: Image, unit: float) -> None:
    rows, columns = height.shape
    radius = rng.uniform(0.015, 0.05) * unit
    y, x = np.ogrid[:rows, :columns]
    away = (x - rng.uniform(0, columns)) ** 2 + (y - rng.uniform(0, rows)) ** 2
    height -= np.float32(0.4 * radius) * np.exp(-away / (radius * radius)).astype(np.float32)


def _brushed(rng: Generator, part: Part, size: tuple[int, ...]) -> Image:
    """Fine streaks along the part (h, w), of deviation 1 or so."""
    streaks = noise(rng, (256, 256), (1, 48)) + 0.5 * noise(rng, (256, 256), (1, 6))
    cos, sin = np.cos(part.angle), np.sin(part.angle)
    turn = np.array([[cos, sin, 128], [-sin, cos, 128]])  # window to streaks
    turn[:, 2] -= turn[:, :2] @ (size[1] / 2, size[0] / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    brushed: Image = cv2.warpAffine(
        streaks, turn, size[1::-1], flags=flags, borderMode=cv2.BORDER_REFLECT
    )
    return brushed


def _sweep(rng: Generator, part: Part, size: tuple[int, ...]) -> Image:
    """How the view of the hall changes over the part: a plane, and a surface not quite flat."""
    y, x = (np.arange(side, dtype=np.float32) / np.float32(max(size)) for side in size[:2])
    azimuth = rng.uniform(0, 2 * np.pi)
    plane = np.float32(np.cos(azimuth)) * x[None, :] + np.float32(np.sin(azimuth)) * y[:, None]
    waves = noise(rng, (size[0], size[1]), (70, 70))
    sweep: Image = np.float32(rng.uniform(0, 6)) + np.float32(1.2) * plane + 0.12 * waves
    return sweep


def _surface(rng: Generator, part: Part, size: tuple[int, ...], metal: Image) -> Image:
    """Its own colour (h, w, 3): metal, scratched here and there, rusty on some."""
    rows, columns = size[:2]
    colour = np.empty((rows, columns, 3), np.float32)
    colour[:] = metal
    if rng.random() < 0.3:
        spots = noise(rng, (rows, columns), (26, 26)) + 0.45 * noise(rng, (rows, columns), (5, 5))
        rust = np.clip((spots - np.float32(rng.uniform(0.9, 1.6))) * 2.5, 0, 0.9)[:, :, None]
        colour += rust * (np.array(_RUST, np.float32) - metal)
    for _ in range(rng.integers(0, 6)):
        x, y = rng.uniform(0, columns), rng.uniform(0, rows)
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.05, 0.3) * max(rows, columns)
        end = (int(x + length * np.cos(angle)), int(y + length * np.sin(angle)))
        shade = (metal * np.float32(rng.choice([0.55, 1.5]))).tolist()
        cv2.line(colour, (int(x), int(y)), end, shade, 1, cv2.LINE_AA)
    return colour
