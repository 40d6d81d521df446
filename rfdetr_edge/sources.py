"""Where frames come from: photos, video files, cameras, and the arguments that name them."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.errors import InputError
from rfdetr_edge.images import IMAGE_SUFFIXES, Url, load_image
from rfdetr_edge.video import VIDEO_SUFFIXES, VideoReader

_LAST_CAMERA = 99  # above it digits are a mistyped file name


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image and where it stands.

    image: HxWx3 uint8 RGB; a photo is a view of BGR pixels, to be copied before drawing on it.
    name: path, URL or camera it came from.
    index: its number within a video, from 0; 0 for a photo.
    time: seconds since the start of the video, None for a photo.
    rate: frames a second of the video, None for a photo.
    """

    image: NDArray[np.uint8]
    name: str
    index: int = 0
    time: float | None = None
    rate: float | None = None


class Source(Protocol):
    """Gives frames in order. Opened when `frames` is called, not before."""

    @property
    def name(self) -> str: ...

    def length(self) -> int | None:
        """Number of frames, None when it cannot be told."""
        ...

    def frames(self) -> Iterator[Frame]:
        """Raises InputError when it cannot be read, at once or further on."""
        ...


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A photo from a file or, wrapped in `Url`, from the web; turned upright by its EXIF tag."""

    target: Path | Url

    @property
    def name(self) -> str:
        return self.target.address if isinstance(self.target, Url) else str(self.target)

    def length(self) -> int:
        return 1

    def frames(self) -> Iterator[Frame]:
        yield Frame(load_image(self.target, upright=True), self.name)


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def length(self) -> int | None:
        try:
            return VideoReader(self.path).count
        except InputError:
            return None  # `frames` reports it in its turn

    def frames(self) -> Iterator[Frame]:
        yield from _video_frames(VideoReader(self.path))


@dataclass(frozen=True, slots=True)
class CameraSource:
    """A camera of this machine by its index; goes on until it is unplugged or interrupted."""

    index: int

    @property
    def name(self) -> str:
        return f"camera {self.index}"

    def length(self) -> None:
        return None

    def frames(self) -> Iterator[Frame]:
        yield from _video_frames(VideoReader(self.index))


def _video_frames(reader: VideoReader) -> Iterator[Frame]:
    for index, (image, seconds) in enumerate(reader.frames()):
        yield Frame(image, reader.name, index, seconds, reader.rate)


def open_sources(arguments: Sequence[str], *, allow_urls: bool) -> list[Source]:
    """The sources that command-line arguments name, each once, in the order given.

    A folder stands for the photos and videos in it and a pattern (`shots/**/*.jpg`) for the files
    it matches, both in the order of their names; digits that name no file are a camera's index.
    Raises InputError for an argument that names nothing.
    """
    found = [source for argument in arguments for source in _expand(argument, allow_urls)]
    return list(dict.fromkeys(found))


def total_length(sources: Sequence[Source]) -> int | None:
    """Number of frames of all sources, None when one of them cannot tell."""
    lengths = [source.length() for source in sources]
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def _expand(argument: str, allow_urls: bool) -> list[Source]:
    if argument.lower().startswith(("http://", "https://")):
        if not allow_urls:
            raise InputError(f"{argument} is on the web; add --allow-urls to fetch it")
        return [ImageSource(Url(argument))]
    if not argument:  # an unset variable of a script, not the folder it runs in
        raise InputError("an empty argument names no file or folder")
    path = Path(argument)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return [_file(path)]
    if argument.isdecimal() and int(argument) <= _LAST_CAMERA:
        return [CameraSource(int(argument))]
    matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))  # noqa: PTH207
    files = [_file(match) for match in matches if match.is_file()]
    if not files:
        raise InputError(f"{argument}: no such file or folder, and no file matches it as a pattern")
    return files


def _folder(path: Path) -> list[Source]:
    wanted = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in wanted and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise InputError(f"{path} holds no photo or video; looked for {', '.join(sorted(wanted))}")
    return [_file(file) for file in files]


def _file(path: Path) -> Source:
    return VideoSource(path) if path.suffix.lower() in VIDEO_SUFFIXES else ImageSource(path)
