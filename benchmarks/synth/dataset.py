"""`rfdetr-edge synth`: photos of metal parts on a conveyor belt, as a COCO data set.

Writes `train|valid|test/_annotations.coco.json` with the photos beside it, 80, 10 and 10 % of
them. A photo depends on the seed, its split and its number alone, so that more images extend a set;
with the same versions of NumPy and OpenCV its bytes are the same again.

Exact are, at the photo's full resolution: the mask of a part, which is its visible pixels, without
those that other parts cover; area, their count; the box, the tightest around them. A mask without
holes, in one piece, is a polygon and rasterises back to nearly the same pixels (IoU over 0.98);
others are uncompressed RLE, exact. Keypoints are exact to the hundredth of a pixel: v is 2 where
the part is visible there, 1 where another part hides it, 0 outside the photo. Parts of which under
15 % are visible are not in the photo. Blur is symmetric and moves nothing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.synth.picture import draw_scene
from benchmarks.synth.scene import Scene, make_scene
from benchmarks.synth.shapes import KINDS
from rfdetr_edge.datasets.coco import ANNOTATIONS
from rfdetr_edge.errors import InputError
from rfdetr_edge.files import make_folder, replacing
from rfdetr_edge.images import RGB, write_image

SPLITS = ("train", "valid", "test")
_SIDES = (64, 8192)
_POLYGON_TOLERANCE = 0.4  # pixels


@dataclass(frozen=True, slots=True)
class Count:
    """What one split holds."""

    images: int
    parts: int


def generate(
    folder: Path,
    images: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (480, 640),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Count]:
    """Writes all splits and returns what each holds.

    size: (height, width) of the photos in pixels. advance: called after each photo.
    Raises InputError for a folder that is not empty, under 3 images, a negative seed, and sides
    outside 64 to 8192.
    """
    if images < len(SPLITS):
        raise InputError(f"{images} images are too few: each of {', '.join(SPLITS)} needs one")
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in size):
        raise InputError(f"photos of {size[1]}x{size[0]} pixels: sides must be 64 to 8192")
    if any(make_folder(folder).iterdir()):
        raise InputError(f"{folder} already holds files; choose a new or empty folder")
    held_back = max(1, round(images / 10))
    counts = (images - 2 * held_back, held_back, held_back)
    return {
        split: _write_split(folder / split, [seed, number], count, size, advance)
        for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True))
    }


def make_photo(seed: list[int], size: tuple[int, int]) -> tuple[RGB, Scene]:
    """A photo and what is on it. seed: that of the set, the split's number, the photo's number."""
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, size)
    return draw_scene(rng, scene), scene


def _write_split(
    folder: Path, seed: list[int], count: int, size: tuple[int, int], advance: Callable[[], None]
) -> Count:
    rows: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    make_folder(folder)
    for number in range(count):
        photo, scene = make_photo([*seed, number], size)
        name = f"{number + 1:06d}.jpg"
        write_image(folder / name, photo)
        images.append({"id": number + 1, "file_name": name, "width": size[1], "height": size[0]})
        for part in range(len(scene.parts)):
            rows.append({"id": len(rows) + 1, "image_id": number + 1, **annotation(scene, part)})
        advance()
    document = {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": rows,
        "categories": categories(),
    }
    with replacing(folder / ANNOTATIONS) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")
    return Count(count, len(rows))


def categories() -> list[dict[str, Any]]:
    """The kinds of parts as COCO's categories, ids from 1, skeleton from 1 too."""
    return [
        {
            "id": number,
            "name": kind.name,
            "supercategory": "part",
            "keypoints": list(kind.keypoints),
            "skeleton": [[a + 1, b + 1] for a, b in kind.skeleton],
        }
        for number, kind in enumerate(KINDS, start=1)
    ]


def annotation(scene: Scene, number: int) -> Mapping[str, Any]:
    """COCO's fields of one part of the scene, without the ids of annotation and image."""
    visible = scene.owner == number
    keypoints = scene.keypoints(number)
    return {
        "category_id": scene.parts[number].kind + 1,
        "bbox": list(cv2.boundingRect(visible.astype(np.uint8))),
        "area": int(visible.sum()),
        "iscrowd": 0,
        "segmentation": segmentation(visible),
        "keypoints": [
            value for x, y, v in keypoints.tolist() for value in (round(x, 2), round(y, 2), int(v))
        ],
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
    }


def segmentation(mask: NDArray[np.bool_]) -> dict[str, Any] | list[list[float]]:
    """A polygon for a mask (H, W) of one piece without holes, else RLE."""
    pixels = mask.astype(np.uint8)
    x, y, width, height = cv2.boundingRect(pixels)
    # every pixel as four, so that the contour, which runs on pixels, tells of the pixels' edges
    fourfold = pixels[y : y + height, x : x + width].repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(fourfold, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) != 1:
        return uncompressed_rle(mask)
    edges = ((contours[0] + 1) // 2 + (x, y)).astype(np.float32)
    polygon = cv2.approxPolyDP(edges, _POLYGON_TOLERANCE, closed=True)
    return [polygon.ravel().tolist()]


def uncompressed_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed RLE of a mask (H, W): lengths of runs down the columns, zeros first."""
    bits = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.flatnonzero(bits[1:] != bits[:-1])
    counts = np.diff(ends, prepend=0, append=mask.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}
