"""Draws a scene as the camera over the line takes it: belt, shadows, parts, lens and sensor."""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.synth.belt import Image, draw_belt, draw_rails, noise
from benchmarks.synth.metal import Light, draw_part, make_light
from benchmarks.synth.scene import Part, Scene, common
from rfdetr_edge.images import RGB

_SHADOW = 0.09  # how far a part's shadow reaches, of its length
_MARGIN = 40  # pixels around a part that its shadow may darken


def draw_scene(rng: Generator, scene: Scene) -> RGB:
    """The photo (H, W, 3), of everything in the scene exactly where the scene has it."""
    size = scene.size[::-1] if scene.vertical else scene.size
    light = make_light(rng)
    picture = _through_camera(scene, draw_belt(rng, size))
    for part in scene.parts:
        _darken(picture, part, light)
        _lay(picture, part, draw_part(rng, part, light))
    picture = _motion(rng, scene, picture)
    rails, cover = (_through_camera(scene, image) for image in draw_rails(rng, size))
    picture += cover[:, :, None] * (rails - picture)
    return _expose(rng, picture, light)


def _through_camera(scene: Scene, image: Image) -> Image:
    """From a belt along the width, seen from above, to the photo."""
    upright = image.swapaxes(0, 1) if scene.vertical else image
    height, width = scene.size
    taken: Image = cv2.warpPerspective(
        np.ascontiguousarray(upright),
        _pixel_centres(scene.camera),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return taken


def _pixel_centres(transform: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transform for coordinates in which whole numbers are the centres of pixels."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    centred: NDArray[np.float64] = np.linalg.inv(half) @ transform @ half
    return centred


def _darken(picture: Image, part: Part, light: Light) -> None:
    """The shadow that a part casts on what is there: sharp below it, soft further out."""
    alpha = cv2.copyMakeBorder(part.alpha, *[_MARGIN] * 4, cv2.BORDER_CONSTANT, value=0)
    reach = min(_SHADOW * part.length, _MARGIN / 3)
    x, y = -light.towards[:2] / light.towards[2] * reach
    shadow = np.zeros_like(alpha)
    for share, blur, depth in ((0.3, 1.2, 0.45), (1.0, max(reach / 2, 1.5), 0.55)):
        move = np.array([[1, 0, share * x], [0, 1, share * y]])
        moved = cv2.warpAffine(alpha, move, alpha.shape[::-1])
        np.maximum(shadow, np.float32(depth) * cv2.GaussianBlur(moved, (0, 0), blur), out=shadow)
    origin = (part.origin[0] - _MARGIN, part.origin[1] - _MARGIN)
    photo, window = common(picture.shape[:2], origin, shadow.shape)
    picture[photo] *= 1 - shadow[window][:, :, None]


def _lay(picture: Image, part: Part, drawn: Image) -> None:
    photo, window = common(picture.shape[:2], part.origin, part.alpha.shape)
    below = picture[photo]
    below += part.alpha[window][:, :, None] * (drawn[window] - below)


def _motion(rng: Generator, scene: Scene, picture: Image) -> Image:
    """Blur along the belt, as far back as ahead, by 1, 3, 5 or 7 pixels."""
    length = int(rng.choice([1, 3, 5, 7], p=[0.45, 0.3, 0.15, 0.1]))
    blurred: Image = cv2.blur(picture, (1, length) if scene.vertical else (length, 1))
    return blurred


def _expose(rng: Generator, picture: Image, light: Light) -> RGB:
    """Lens and sensor: uneven light, vignette, softness, white balance, noise, 8 bits."""
    size = (picture.shape[0], picture.shape[1])
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in size)
    lx, ly = light.towards[:2].astype(np.float32)
    glow = 1 + np.float32(rng.uniform(0.05, 0.3)) * (lx * x[None, :] + ly * y[:, None])
    glow -= np.float32(rng.uniform(0.05, 0.28)) * (x[None, :] ** 2 + y[:, None] ** 2)
    balance = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0.05, 0.12)).astype(np.float32)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 0.9))
    picture *= glow[:, :, None] * balance
    grain = noise(rng, size, (1, 1)) + noise(rng, size, (2, 2))
    picture += (np.float32(rng.uniform(0.006, 0.018)) * grain * np.sqrt(glow))[:, :, None]
    picture = np.maximum(picture, 0)
    # lights are compressed, as a camera does, so that bright metal keeps its drawing
    photo: RGB = np.minimum(picture * 344 / (1 + 0.76 * picture), 255).astype(np.uint8)
    return photo
