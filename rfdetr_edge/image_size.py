"""The size of an image file without decoding it, for data sets of many thousand images."""

import os
from pathlib import Path
from typing import BinaryIO

from rfdetr_edge.images import load_image

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the stored pixels, whatever the EXIF orientation.

    From the header of a JPEG or PNG file that ends as such a file does; others are decoded, as is
    one whose header cannot be made out. So a file that was cut off is found, by the InputError of
    `load_image`; one that is damaged inside is not.
    """
    try:
        with path.open("rb") as file:
            head = file.read(24)
            file.seek(-len(_PNG_END), os.SEEK_END)
            tail = file.read()
            if head.startswith(_PNG) and tail == _PNG_END:
                return int.from_bytes(head[20:], "big"), int.from_bytes(head[16:20], "big")
            whole = head.startswith(_JPEG) and tail.endswith(_JPEG_END)
            size = _jpeg_size(file) if whole else None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        size = None  # let the decoder say what it is
    return size or load_image(path, upright=False).shape[:2]


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """From the frame header, to which the segments before it are stepped over by their length."""
    file.seek(2)
    while len(head := file.read(9)) == 9 and head[0] == 0xFF:
        if head[1] in _FRAME_HEADERS:
            return int.from_bytes(head[5:7], "big"), int.from_bytes(head[7:9], "big")
        file.seek(int.from_bytes(head[2:4], "big") + 2 - len(head), os.SEEK_CUR)
    return None
