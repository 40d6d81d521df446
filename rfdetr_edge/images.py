"""Images in and out: whatever a caller holds becomes an HxWx3 uint8 RGB array, and back to a file.

OpenCV decodes; Pillow images are taken when the caller brings them, Pillow itself is not needed.
All formats end as 8-bit RGB: grey is repeated, palettes are looked up, CMYK is converted, alpha is
dropped, and of 16-bit values the upper byte is kept (65535 -> 255, as OpenCV itself does).
Arrays are not looked into here: `preprocess.check_image` does that.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge import _optional
from rfdetr_edge.errors import InputError
from rfdetr_edge.files import replacing

RGB = NDArray[np.uint8]
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_URL_STARTS = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Url:
    """The address of an image, http or https: the explicit wish to fetch it.

    A plain string is always a path, so that no list of names from elsewhere makes a device call
    out. Raises InputError for another kind of address.
    """

    address: str

    def __post_init__(self) -> None:
        if not self.address.lower().startswith(_URL_STARTS):
            raise InputError(f"{self.address!r} is no http:// or https:// address")


class PilImage(Protocol):
    """What is used of a `PIL.Image.Image`."""

    mode: str

    def convert(self, mode: str, /) -> Any:
        """The image in another mode."""


ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Url | PilImage | NDArray[Any]
)


def load_image(image: ImageInput, *, upright: bool) -> NDArray[Any]:
    """Any accepted kind of image as an array; an array comes back as it is.

    What is decoded is `decode_image`'s view of BGR pixels.
    upright: turn files, bytes and addresses as their EXIF orientation says. A Pillow image is
        never turned: boxes refer to the pixels as the caller holds them.
    Raises InputError that says what is wrong with the image, or that its type is none of these.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, str | os.PathLike):
        return decode_image(_contents(image), upright=upright, name=os.fspath(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), upright=upright)
    if isinstance(image, Url):
        # urllib costs 35 ms, a fifth of the start-up budget
        from rfdetr_edge._fetch import fetch  # noqa: PLC0415

        return decode_image(fetch(image.address), upright=upright, name=image.address)
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return _from_pil(image)
    raise InputError(
        f"an image of type {type(image).__name__} cannot be read; give a path, bytes, "
        "rfdetr_edge.Url, a Pillow image, or an HxWx3 NumPy array"
    )


def read_image(path: str | os.PathLike[str], *, upright: bool) -> RGB:
    """An image file as (H, W, 3) uint8 RGB, C-contiguous.

    upright: turn it as its EXIF orientation says, as a viewer would; False gives the stored
        pixels, which the boxes of training data refer to.
    Raises InputError when it is missing, a folder, empty, truncated, no image, or too large.
    """
    view = load_image(path, upright=upright)  # turned back, since OpenCV swaps the fastest
    cv2 = _optional.opencv()
    rgb: RGB = cv2.cvtColor(view[..., ::-1], cv2.COLOR_BGR2RGB)
    return rgb


def _contents(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file. Errors as above."""
    name = os.fspath(path)
    if name.lower().startswith(_URL_STARTS):
        raise InputError(
            f"{name} is a web address: wrap it in rfdetr_edge.Url, or pass --allow-urls on the "
            "command line, to have it fetched"
        )
    try:
        return Path(name).read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no image file {name}") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a folder where an image file is needed") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"cannot read {name!r}: {error}") from error


def decode_image(data: bytes, *, upright: bool, name: str = "the image") -> RGB:
    """The bytes of an image file as (H, W, 3) uint8 RGB; see `read_image`. Errors say `name`.

    It is a view of the BGR pixels that OpenCV gives: `preprocess` is as fast on it, and a copy
    would take a third of the time of decoding. Copy it before drawing on it.
    """
    cv2 = _optional.opencv()
    if not data:
        raise InputError(f"{name} is empty (0 bytes)")
    if data.startswith(b"\xff\xd8") and not _is_whole_jpeg(data):
        raise InputError(f"{name} is a truncated JPEG; copy or download it again")
    orientation = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | orientation
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # such as more pixels than OpenCV's limit
        raise InputError(f"{name} cannot be decoded: {error.err}") from error
    if bgr is None:
        raise InputError(f"{name} is truncated, or no image that OpenCV can read")
    if bgr.dtype == np.uint16:
        bgr = _upper_byte(bgr)
    if bgr.dtype != np.uint8:
        raise InputError(f"{name} has {bgr.dtype} pixels; convert it to 8 or 16 bits")
    rgb: RGB = bgr[..., ::-1]
    return rgb


def write_image(path: str | os.PathLike[str], rgb: RGB) -> None:
    """Writes (H, W, 3) uint8 RGB in the format that the suffix names; whole or not at all.

    Raises InputError for a suffix that OpenCV cannot write, OSError when writing fails.
    """
    cv2 = _optional.opencv()
    target = Path(path)
    try:
        _, data = cv2.imencode(target.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise InputError(
            f"cannot write {target} as an image: {error.err}; use .jpg or .png"
        ) from error
    with replacing(target) as temporary:
        temporary.write_bytes(data)


def image_files(folder: Path) -> list[Path]:
    """The images directly in a folder, by suffix, sorted by name; hidden files are left out.

    Raises InputError when there is none.
    """
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
    if not files:
        raise InputError(
            f"the folder {folder} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return files


def _from_pil(image: PilImage) -> RGB:
    try:
        if image.mode.startswith("I"):  # 16 bits in one of several modes; convert() would clip them
            wide = np.asarray(image)
            if wide.min() < 0 or wide.max() > 65535:
                raise InputError(f"a Pillow image of mode {image.mode} must hold 0 to 65535")
            return np.repeat(_upper_byte(wide)[:, :, None], 3, axis=2)
        if image.mode == "F":  # convert() would clip it, and make 0-1 black
            raise InputError("a Pillow image of mode F has no known range; give an array in 0-1")
        return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except (OSError, ValueError) as error:  # Pillow reads lazily: a truncated or closed file
        raise InputError(f"the Pillow image cannot be read: {error}") from error


def _upper_byte(wide: NDArray[Any]) -> RGB:
    return (wide >> 8).astype(np.uint8)


# a marker of a JPEG file: not a stuffed zero, a fill byte, or a restart marker inside the scan
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END_OF_IMAGE = b"\xff\xd9"


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether the end marker follows the last scan; older OpenCV fills a missing rest with grey.

    Segments are stepped over by their length, since an embedded thumbnail has an end marker too.
    """
    position = 2
    while marker := _MARKER.search(data, position):
        if marker.group() == _END_OF_IMAGE:
            return True
        position = marker.end()
        position += int.from_bytes(data[position : position + 2], "big")
    return False
