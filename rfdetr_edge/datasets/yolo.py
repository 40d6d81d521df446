"""YOLO layout: `data.yaml`, and beside every image a text file of boxes, read as COCO documents.

A line is `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...` (a polygon, whose bounds are the box),
all relative to the image. Where the data file has a `kpt_shape`, [K, 2] or [K, 3], it is
`class cx cy w h` and K points `x y` or `x y v`; without v, a point at (0, 0) is not labelled. The
data file's `flip_idx` says for each point which one it is in a mirror image.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rfdetr_edge.annotation_shapes import is_coordinate, marked
from rfdetr_edge.annotations import AnnotationFile, Fault
from rfdetr_edge.datasets.coco import FOLDERS
from rfdetr_edge.errors import InputError
from rfdetr_edge.image_size import image_size
from rfdetr_edge.images import image_files
from rfdetr_edge.yaml_file import read_yaml

DATA_FILES = ("data.yaml", "data.yml")
_CLASS_LIST = "classes.txt"  # which labelling tools leave among the labels


class _Data(NamedTuple):
    """What the data file says. points: K; each: numbers of a point, 0 without keypoints."""

    categories: list[dict[str, Any]]
    points: int
    each: int


def read_yolo(root: Path) -> dict[str, AnnotationFile]:
    """The splits that are there; category ids are 0 to N-1.

    Folders are those of the data file's `train`, `val` and `test` where these lie inside the root,
    else `train|valid|test/images`; labels are in `labels` instead of `images`.
    Raises InputError for a data file that is missing or does not name the classes, and for a
    folder without images.
    """
    root = Path(os.path.normpath(Path.cwd() / root))
    path = next((root / name for name in DATA_FILES if (root / name).is_file()), None)
    if path is None:
        raise InputError(f"{root} has no {' or '.join(DATA_FILES)}, which names the classes")
    settings = read_yaml(path)
    points, each = _shape(path, settings.get("kpt_shape"))
    names = [f"point {point}" for point in range(points)]
    flips = _flip_pairs(path, settings.get("flip_idx"), points) if points else []
    named = {"keypoints": names, "flip_pairs": flips} if points else {}
    classes = enumerate(_names(path, settings.get("names")))
    data = _Data([{"id": i, "name": name, **named} for i, name in classes], points, each)
    found = {}
    for split in FOLDERS:
        folder = _image_folder(root, split, settings.get("val" if split == "valid" else split))
        if folder is not None:
            found[split] = _read_split(root, folder, data, _place(path, "names"))
    return found


def _place(path: Path, key: str) -> tuple[Path, int]:
    """Where a key of the data file is."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return path, next((i for i, line in enumerate(lines, start=1) if line.startswith(key)), 1)


def _names(path: Path, names: object) -> list[str]:
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    message = "names must be a list, or map 0, 1, 2, ... without a gap, to class names"
    raise InputError(str(Fault(*_place(path, "names"), message)))


def _shape(path: Path, shape: object) -> tuple[int, int]:
    """How many points a line has, and how many numbers a point; (0, 0) without keypoints."""
    match shape:
        case None:
            return 0, 0
        case [int(points), 2 | 3 as each] if points >= 0:
            return points, int(each)
    message = f"kpt_shape must be [K, 2] or [K, 3], not {shape}"
    raise InputError(str(Fault(*_place(path, "kpt_shape"), message)))


def _flip_pairs(path: Path, flips: object, points: int) -> list[list[int]]:
    """The points, from 1, that a mirror image swaps."""
    if flips is None:
        return []
    if (
        isinstance(flips, list)
        and len(flips) == points
        and all(type(other) is int and 0 <= other < points for other in flips)
        and all(flips[other] == point for point, other in enumerate(flips))
    ):
        return [[a + 1, b + 1] for a, b in enumerate(flips) if a < b]
    message = f"flip_idx must name each of 0 to {points - 1}'s mirror image, not {flips}"
    raise InputError(str(Fault(*_place(path, "flip_idx"), message)))


def _image_folder(root: Path, split: str, stated: object) -> Path | None:
    folders = [root / folder / "images" for folder in FOLDERS[split]]
    if isinstance(stated, str):
        named = Path(os.path.normpath(root / stated))
        if named.is_relative_to(root):  # Roboflow writes ../train/images
            folders = [named / "images", named, *folders]
    return next((folder for folder in folders if folder.is_dir()), None)


def _label_folder(root: Path, folder: Path) -> Path:
    parts = folder.relative_to(root).parts
    at = max((i for i, part in enumerate(parts) if part == "images"), default=len(parts))
    return root.joinpath(*parts[:at], *["labels", *parts[at + 1 :]][: len(parts) - at])


def _read_split(root: Path, folder: Path, data: _Data, place: tuple[Path, int]) -> AnnotationFile:
    labels, paths = _label_folder(root, folder), image_files(folder)
    known = {path.stem for path in paths}
    faults = [
        Fault(path, 1, f"has no image in {folder}")
        for path in sorted(labels.glob("*.txt"))
        if path.stem not in known and path.name != _CLASS_LIST
    ]
    if not labels.is_dir():
        faults.append(Fault(folder, 0, f"its labels should be in {labels}, which is no folder"))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = [dict(row) for row in data.categories]
    places = {id(row): place for row in categories}
    for image_id, path in enumerate(paths, start=1):
        try:
            height, width = image_size(path)
        except InputError as error:
            faults.append(Fault(path, 0, str(error)))
            continue
        name = path.relative_to(root).as_posix()
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        places[id(images[-1])] = (path, 0)
        label_file = labels / f"{path.stem}.txt"
        for line, text in _lines(label_file, faults):
            try:
                row = _parse(text.split(), data, (width, height))
            except InputError as error:
                faults.append(Fault(label_file, line, str(error)))
                continue
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **row})
            places[id(annotations[-1])] = (label_file, line)
    document = {"images": images, "annotations": annotations, "categories": categories}
    return AnnotationFile(folder, root, document, tuple(faults), lambda row: places[id(row)])


def _lines(path: Path, faults: list[Fault]) -> Iterator[tuple[int, str]]:
    """The lines of a label file that are not blank, by number; an image without one has no box."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except (OSError, ValueError) as error:
        faults.append(Fault(path, 1, f"cannot be read as text: {error}"))
        return
    yield from (row for row in enumerate(text.split("\n"), start=1) if row[1].strip())


def _parse(tokens: list[str], data: _Data, wh: tuple[int, int]) -> dict[str, Any]:
    """The annotation of a line, in pixels. Raises InputError that says what is wrong with it."""
    try:
        number, *values = map(float, tokens)
    except ValueError as error:
        raise InputError(f"a line holds numbers: {error}") from None
    if number not in range(len(data.categories)):
        raise InputError(f"class {tokens[0]} is none of 0 to {len(data.categories) - 1}")
    if not all(map(is_coordinate, values)):
        raise InputError("every number must be finite")
    more: dict[str, Any] = {}
    expected = 5 + data.points * data.each
    if data.each and len(tokens) != expected:
        raise InputError(f"kpt_shape asks for {expected} numbers a line, not {len(tokens)}")
    if data.each or len(values) == 4:
        x, y, width, height = values[:4]
        x0, y0, x1, y1 = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        if data.points:
            more = _keypoints(values[4:], data.each, wh)
    elif len(values) >= 6 and len(values) % 2 == 0:
        x0, y0, x1, y1 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        more = {"segmentation": [[value * wh[i % 2] for i, value in enumerate(values)]]}
    else:
        raise InputError(f"a box has 5 numbers, a polygon 7, 9, 11, ...; not {len(tokens)}")
    bbox = [x0 * wh[0], y0 * wh[1], (x1 - x0) * wh[0], (y1 - y0) * wh[1]]
    row = {"category_id": int(number), "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}
    return {**row, **more}


def _keypoints(values: list[float], each: int, wh: tuple[int, int]) -> dict[str, Any]:
    """COCO's fields of a line's points."""
    points: list[float] = []
    for first in range(0, len(values), each):
        x, y, *mark = values[first : first + each]
        points += [x * wh[0], y * wh[1], mark[0] if mark else 2 * (x != 0 or y != 0)]
    row = {"keypoints": points}
    return {**row, "num_keypoints": marked(row)}
