"""Video files and cameras through OpenCV: frames in, an .mp4 out. Knows nothing of detections."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge._optional import opencv
from rfdetr_edge.errors import InputError
from rfdetr_edge.files import replacing

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}
)
DEFAULT_RATE = 25.0  # frames a second, for a camera that does not tell
# containers without an index only estimate their length
_SHORTEST = 0.9


class VideoReader:
    """An opened video file (a path) or camera (its index).

    rate: frames a second. count: number of frames, None where it is not known.
    Raises InputError when OpenCV cannot open it.
    """

    def __init__(self, target: Path | int) -> None:
        cv2 = opencv()
        self.name = f"camera {target}" if isinstance(target, int) else str(target)
        if isinstance(target, Path) and not target.is_file():
            raise InputError(f"{target}: no such video file")
        self._capture: Any = cv2.VideoCapture(target if isinstance(target, int) else str(target))
        if not self._capture.isOpened():
            hint = (
                "is it connected, and used by nobody else?"
                if isinstance(target, int)
                else "the file is damaged, or no video that this OpenCV decodes"
            )
            raise InputError(f"{self.name} cannot be opened: {hint}")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if 0 < rate <= 1000 else DEFAULT_RATE
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count = count if count > 0 and isinstance(target, Path) else None

    def frames(self) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """(HxWx3 uint8 RGB, seconds since the start), to the end of the video, once.

        Raises InputError when not one frame decodes, and, after those that did, when the video
        breaks off long before its stated length.
        """
        cv2 = opencv()
        number = 0
        try:
            while True:
                decoded, image = self._capture.read()
                if not decoded:
                    break
                seconds = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
                yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), seconds
                number += 1
        finally:
            self._capture.release()
        if number == 0:
            raise InputError(f"{self.name}: not one frame can be decoded")
        if self.count is not None and number < _SHORTEST * self.count:
            raise InputError(
                f"{self.name}: the video breaks off after {number} of {self.count} frames"
            )


class FrameWriter(Protocol):
    """Where the frames of one video go, in order."""

    def __call__(self, image: NDArray[np.uint8]) -> None: ...


@contextmanager
def write_video(path: Path, *, size: tuple[int, int], rate: float) -> Iterator[FrameWriter]:
    """Gives a function that appends an HxWx3 uint8 RGB frame to an .mp4 (MPEG-4 part 2).

    size: (height, width) of every frame; an odd side is padded by a pixel, which the codec wants.
    rate: frames a second. The file appears when the block ends. Raises OSError when it could not
    be written in full, InputError where it cannot be a file.
    """
    cv2 = opencv()
    height, width = size
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    written = 0
    with replacing(path) as temporary:
        encoder: Any = cv2.VideoWriter(
            str(temporary),
            cv2.VideoWriter.fourcc(*"mp4v"),
            rate,
            (width + width % 2, height + height % 2),
        )
        try:
            if not encoder.isOpened():
                raise OSError(f"cannot write {path}: OpenCV could not start its .mp4 encoder")

            def append(image: NDArray[np.uint8]) -> None:
                nonlocal written
                encoder.write(cv2.cvtColor(np.pad(image, padding, mode="edge"), cv2.COLOR_RGB2BGR))
                written += 1

            yield append
        finally:
            encoder.release()
        # the encoder keeps failed writes to itself, so the file is asked
        check: Any = cv2.VideoCapture(str(temporary))
        stored = int(check.get(cv2.CAP_PROP_FRAME_COUNT)) if check.isOpened() else 0
        check.release()
        if stored < written:  # one more where an interrupt came before it was counted
            raise OSError(
                f"cannot write {path}: {stored} of {written} frames reached the disk; is it full?"
            )
