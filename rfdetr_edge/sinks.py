"""Where results go: JSON lines, a COCO results file, annotated pictures and videos.

A sink is a function that takes each frame with its detections. The functions here are context
managers that give one; files appear whole when the block ends, and not at all when it raises.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from rfdetr_edge.detections import Detections
from rfdetr_edge.draw import draw
from rfdetr_edge.errors import InputError
from rfdetr_edge.files import make_folder, naming, replacing
from rfdetr_edge.images import write_image
from rfdetr_edge.sources import Frame
from rfdetr_edge.video import FrameWriter, write_video

Sink = Callable[[Frame, Detections], None]


def to_record(frame: Frame, detections: Detections) -> dict[str, Any]:
    """One object of the JSON lines, a stable schema.

    `{"image": path, "width": int, "height": int, "detections": [{"xyxy": [x0, y0, x1, y1],
    "confidence": float, "class_id": int, "class_name": str}, ...]}`, boxes in pixels, in
    the order of `Detections`. Masks and keypoints add keys to each (`Detections.to_dict`). Frames
    of a video also have "frame", from 0, and "time" in seconds.
    """
    place = {} if frame.time is None else {"frame": frame.index, "time": round(frame.time, 6)}
    return {"image": frame.name, **place, **detections.to_dict()}


def json_stream(stream: TextIO) -> Sink:
    """Writes one JSON object a line to an open stream, each at once."""

    def write(frame: Frame, detections: Detections) -> None:
        stream.write(json.dumps(to_record(frame, detections), allow_nan=False) + "\n")
        stream.flush()

    return write


@contextmanager
def json_lines(path: Path) -> Iterator[Sink]:
    """A file of one JSON object a line, as `to_record` gives them."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        append = json_stream(stream)

        def write(frame: Frame, detections: Detections) -> None:
            with naming(path):
                append(frame, detections)

        yield write


def coco_image_ids(names: Sequence[str]) -> dict[str, int]:
    """COCO image ids by image name.

    COCO's own files are named by their id (`000000000139.jpg`), so where every file name is a
    number, and no two the same, these are the ids; otherwise 1, 2, 3, ... in the order given.
    """
    stems = [Path(name).stem for name in names]
    if all(stem.isdecimal() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return dict(zip(names, numbers, strict=True))
    return {name: number for number, name in enumerate(names, start=1)}


@contextmanager
def coco_results(path: Path, image_ids: Mapping[str, int]) -> Iterator[Sink]:
    """A COCO results file: a list of image_id, category_id, bbox, score.

    Masks add "segmentation", keypoints "keypoints" (`Detections.to_coco`).

    image_ids: by the names of the frames, which are photos.
    """
    rows: list[dict[str, Any]] = []

    def write(frame: Frame, detections: Detections) -> None:
        rows.extend(detections.to_coco(image_ids[frame.name]))

    with replacing(path) as temporary:
        yield write
        temporary.write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")


@contextmanager
def annotated(folder: Path, inputs: Sequence[str]) -> Iterator[Sink]:
    """Pictures (.jpg, or .png for a .png) and videos (.mp4) with the results drawn on, in a folder.

    Each keeps the name of its input; of two inputs with one name the second becomes `name-2`.
    Raises InputError when the folder holds one of the inputs, which would be written over.
    """
    place = folder.resolve()
    for name in inputs:
        if Path(name).resolve().parent == place and Path(name).exists():
            raise InputError(
                f"cannot save into {folder}: it holds the input {name}, which would be written "
                "over; choose another folder"
            )
    make_folder(folder)
    used: set[str] = set()
    append: FrameWriter | None = None
    with ExitStack() as video:

        def write(frame: Frame, detections: Detections) -> None:
            nonlocal append
            picture = draw(frame.image, detections)
            if frame.rate is None:
                write_image(_free_path(folder, frame.name, used), picture)
                return
            if append is None or frame.index == 0:
                video.close()  # the video before is whole
                path = _free_path(folder, frame.name, used, ".mp4")
                append = video.enter_context(
                    write_video(path, size=detections.source_size, rate=frame.rate)
                )
            append(picture)

        yield write


def _free_path(folder: Path, name: str, used: set[str], suffix: str | None = None) -> Path:
    source = Path(urlsplit(name).path if "://" in name else name)
    stem = source.stem or "image"
    suffix = suffix or (".png" if source.suffix.lower() == ".png" else ".jpg")
    number, file = 1, f"{stem}{suffix}"
    while file.casefold() in used:
        number += 1
        file = f"{stem}-{number}{suffix}"
    used.add(file.casefold())
    return folder / file
