"""Calibration sets: the images that fix the scales of an INT8 artifact, whatever it is built for.

An image becomes a tensor by `rfdetr_edge.images` and `rfdetr_edge.preprocess`, as at inference.
Files are read as stored, without turning them by their EXIF tag, as in training, evaluation and the
gate: that is the picture which the network learned from and which the annotations refer to.

No image is left out unsaid: one that cannot be read ends the calibration. Knows nothing of ONNX or
TFLite, and nothing of what the tensors are for.
"""

import hashlib
import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import image_files, load_image
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import check_image, preprocess_batch

Source: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | NDArray[Any]
_Images: TypeAlias = Mapping[str, Path | NDArray[Any]]

# Named here too, since rfdetr_edge.datasets needs PyYAML, which the export extra does not bring.
_ANNOTATIONS = "_annotations.coco.json"
_KINDS = (
    "a folder of images, a COCO annotation file (.json), an .npy file (N, H, W, 3), or image files"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)  # without slots, which would leave the digest no place
class CalibrationSet:
    """Images in a fixed order, read one by one when they are needed.

    images: what messages, and the COCO file if there is one, call an image -> its file, or its
        pixels (H, W, 3), RGB, uint8 or float32 in 0-1.
    available: how many there were to choose from. origin: where they come from, for messages.
    annotations: the COCO file that lists them, None without one.
    """

    images: _Images
    available: int
    origin: str
    annotations: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        return f"{len(self)} of {self.available} images from {self.origin}"

    def pixels(self) -> Iterator[NDArray[Any]]:
        """Each image as (H, W, 3) RGB, uint8 or float32 in 0-1, at its own size.

        Raises InputError that names the image which cannot be read or used.
        """
        for name, image in self.images.items():
            array = load_image(image, upright=False)
            try:
                check_image(array)
            except InputError as error:
                raise InputError(f"calibration image {name}: {error}") from None
            yield array

    def tensors(self, spec: InputSpec) -> Iterator[NDArray[np.float32]]:
        """Each image as the runtime would feed it to a session, (1, 3, H, W); errors as above."""
        for image in self.pixels():
            yield preprocess_batch([image], spec)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels in their order, as hexadecimal text; errors as above.

        The same for the same pixels wherever they come from: names, folders and file formats do not
        count. (Another OpenCV may decode a JPEG to other pixels.) The first access reads every
        image.
        """
        digest = hashlib.sha256()
        for image in self.pixels():
            digest.update(f"{image.dtype} {image.shape}\n".encode())
            digest.update(np.ascontiguousarray(image).data.cast("B"))
        return digest.hexdigest()

    def split(self, share: float = 0.5) -> tuple["CalibrationSet", "CalibrationSet"]:
        """Two sets without a common image: one to set ranges by, one to measure their effect on.

        share: of the images in the first, above 0 and below 1; each gets at least one. Both are
        spread evenly over the order, so that a set sorted by day or by class is halved in each.
        Raises InputError for another share, and for fewer than two images.
        """
        if not 0 < share < 1:
            raise InputError(f"the share of a split must be above 0 and below 1, not {share:g}")
        total = len(self)
        if total < 2:
            raise InputError(f"{self} cannot be split in two; give at least 2 images")
        count = min(max(round(total * share), 1), total - 1)
        first = {place * total // count for place in range(count)}
        return self._part(first), self._part(set(range(total)) - first)

    def _part(self, places: set[int]) -> "CalibrationSet":
        items = enumerate(self.images.items())
        return replace(self, images=dict(item for place, item in items if place in places))


def calibration_set(source: Source, *, limit: int = 100, seed: int = 0) -> CalibrationSet:
    """The images of a source, sorted by name, at most `limit` of them chosen by `seed`.

    source: a folder of images; a COCO split, which is a folder with `_annotations.coco.json` or the
        path of an annotation file, and means the images that the file lists; image files, in any
        order; an array (N, H, W, 3), RGB, uint8 or float32 in 0-1, or an `.npy` file of one.
    The images of an annotation file lie beside it, in `images` beside it or beside its folder, or,
    for `annotations/instances_val2017.json`, in `val2017` beside that folder.
    Nothing is decoded or copied here; an `.npy` file is mapped.
    Raises InputError for a source that is missing, empty, or none of these, for images that are
    missing, and for a limit below 1.
    """
    if limit < 1:
        raise InputError(f"the limit of calibration images must be at least 1, not {limit}")
    every = _every_image(source)
    places = random.Random(seed).sample(range(len(every)), min(limit, len(every)))
    return every._part(set(places))


def annotated_set(annotations: Path, folder: Path) -> CalibrationSet:
    """All images that a COCO file lists, from this folder. Raises InputError as above."""
    return _whole(_listed(annotations, [folder]), str(folder), annotations)


def _every_image(source: Source) -> CalibrationSet:
    if isinstance(source, np.ndarray):
        return _whole(_rows(source, "the array"), "the array")
    if not isinstance(source, str | os.PathLike):
        return _whole(_files([Path(path) for path in source]), "the files given")
    path = Path(source)
    listing = path / _ANNOTATIONS if path.is_dir() else path
    if listing.suffix.lower() == ".json" and listing.is_file():
        return _whole(_listed(listing, _usual_folders(listing)), str(path), listing)
    if path.is_dir():
        return _whole(_folder(path), str(path))
    if not path.exists():
        raise InputError(f"there is no {path} to calibrate with; give {_KINDS}")
    if path.suffix.lower() == ".npy":
        return _whole(_rows(_mapped(path), str(path)), str(path))
    raise InputError(f"{path} is nothing to calibrate with; give {_KINDS}, these as a list")


def _whole(images: _Images, origin: str, annotations: Path | None = None) -> CalibrationSet:
    return CalibrationSet(images, len(images), origin, annotations)


def _folder(folder: Path) -> _Images:
    images = image_files(folder)
    others = sorted(set(folder.glob("[!.]*")) - set(images))
    if others:
        logger.warning(
            "%s also holds %d entries that are no images by their suffix, such as %s; they take "
            "no part in the calibration",
            folder,
            len(others),
            others[0].name,
        )
    return {str(path): path for path in images}


def _usual_folders(annotations: Path) -> list[Path]:
    """Where the images of a COCO file may lie."""
    beside, root = annotations.parent, annotations.parent.parent
    split = annotations.stem.rpartition("_")[2]  # instances_val2017
    return [beside, beside / "images", root / "images", root / split]


def _listed(annotations: Path, folders: Sequence[Path]) -> _Images:
    """The images that a COCO file lists, from the folder that holds the most of them."""
    rows = read_annotations(annotations)["images"]
    names = sorted({row["file_name"] for row in rows})
    if not names:
        raise InputError(f"{annotations} lists no images to calibrate with")
    missing = {folder: [n for n in names if not (folder / n).is_file()] for folder in folders}
    folder = min(missing, key=lambda folder: len(missing[folder]))
    if missing[folder]:
        raise InputError(
            f"{annotations} lists {len(names)} images, of which {len(missing[folder])} are "
            f"missing, such as {folder / missing[folder][0]}; add them, or take them off the list"
        )
    return {name: folder / name for name in names}


def _files(paths: Iterable[Path]) -> _Images:
    files = sorted(set(paths))
    if not files:
        raise InputError(f"there are no files to calibrate with; give {_KINDS}")
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(files)} calibration images are no files, such as {missing[0]}"
        )
    return {str(path): path for path in files}


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError) as error:  # ValueError: another format, Python objects, truncated
        raise InputError(f"{path} cannot be read as an .npy file: {error}") from error


def _rows(array: NDArray[Any], name: str) -> _Images:
    """A view of each image of an array; nothing is read."""
    wanted = "wanted (N, height, width, 3) RGB of uint8, or of float32 in 0-1"
    if array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise InputError(f"{name} has shape {array.shape}; {wanted}")
    if array.dtype not in (np.uint8, np.float32):
        raise InputError(f"{name} is of {array.dtype}; {wanted}")
    return {f"{row} of {name}": image for row, image in enumerate(array)}
