"""COCO annotation files: reading one, and naming everything that is wrong with it by its line.

Does not look at the images. Masks and keypoints are checked in full for a task that needs them.
"""

import functools
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rfdetr_edge.annotation_shapes import (
    category_misfit,
    count_misfit,
    is_coordinate,
    keypoints_misfit,
    mark_misfit,
    marked,
    mask_misfit,
    size_misfit,
)
from rfdetr_edge.errors import InputError
from rfdetr_edge.variants import Task

_FIELDS: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a data set; its text is `path:line: message`.

    line: from 1; 0 for what has no lines: an image, a folder, a file that is not there.
    fatal: False where reading goes on without harm; the message then says how.
    """

    path: Path
    line: int
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationFile:
    """What an annotation file holds, and what is wrong with it.

    folder: what its file names refer to. document: the COCO document, sound entries only, `area`
    and `iscrowd` filled in where the file leaves them out, as are `keypoints` (none labelled) and
    `num_keypoints` where the category has points. place: the file and line of an entry of the
    document.
    """

    path: Path
    folder: Path
    document: dict[str, Any]
    faults: tuple[Fault, ...]
    place: Callable[[Mapping[str, Any]], tuple[Path, int]]

    @property
    def sound(self) -> bool:
        """Whether nothing in it is fatal."""
        return not any(fault.fatal for fault in self.faults)

    def fault(self, entry: Mapping[str, Any], message: str, *, fatal: bool = True) -> Fault:
        """A fault of an entry of the document."""
        return Fault(*self.place(entry), message, fatal)


class _Problem(NamedTuple):
    section: str
    position: int
    message: str
    fatal: bool


def read_annotations(path: Path, task: Task = "detection") -> dict[str, Any]:
    """The document of a COCO annotation file, completed as in `AnnotationFile`.

    Raises InputError that names the first thing that is missing or malformed, and its line.
    """
    file = for_task(scan_annotations(path), task)
    for fault in file.faults:
        if fault.fatal:
            raise InputError(str(fault))
    return file.document


def scan_annotations(path: Path, folder: Path | None = None) -> AnnotationFile:
    """A COCO annotation file with all its faults; nothing is raised.

    folder: of the images, None for the file's own.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text)
    except FileNotFoundError:
        return _unreadable(path, 0, "no such annotation file")
    except json.JSONDecodeError as error:
        message = f"cannot be read as JSON: {error.msg} (column {error.colno})"
        return _unreadable(path, error.lineno, message)
    except (OSError, ValueError, RecursionError) as error:
        return _unreadable(path, 0, f"cannot be read as a JSON annotation file: {error}")
    if not isinstance(document, dict):
        return _unreadable(path, 1, "is no COCO annotation file: it holds no JSON object")
    for section in _FIELDS:
        if not isinstance(document.get(section), list):
            message = f"is no COCO annotation file: it has no list {section!r}"
            return _unreadable(path, 1, message)

    @functools.cache
    def lines() -> dict[str, list[int]]:
        return _entry_lines(text)

    @functools.cache
    def line_of() -> dict[int, int]:
        return {
            id(entry): line
            for section in _FIELDS
            for entry, line in zip(document[section], lines()[section], strict=True)
        }

    problems = list(_problems(document))
    return AnnotationFile(
        path,
        folder or path.parent,
        _sound(document, problems),
        tuple(
            Fault(path, lines()[problem.section][problem.position], problem.message, problem.fatal)
            for problem in problems
        ),
        lambda entry: (path, line_of()[id(entry)]),
    )


def _unreadable(path: Path, line: int, message: str) -> AnnotationFile:
    nothing: dict[str, Any] = {section: [] for section in _FIELDS}
    faults = (Fault(path, line, message),)
    return AnnotationFile(path, path.parent, nothing, faults, lambda entry: (path, 0))


def _problems(document: Mapping[str, Any]) -> Iterator[_Problem]:
    listed = {
        section: {
            entry["id"]: entry
            for entry in document[section]
            if isinstance(entry, dict) and type(entry.get("id")) is int
        }
        for section in ("images", "categories")
    }
    for section in _FIELDS:
        taken: set[int] = set()
        for index, entry in enumerate(document[section]):
            message = _misfit(section, entry)
            if message is None and entry["id"] in taken:
                message = f"id {entry['id']} is already that of another entry of {section!r}"
            if message is None and section == "annotations":
                message = _annotation_misfit(entry, listed)
            if message is not None:
                yield _Problem(section, index, message, fatal=True)
                continue
            taken.add(entry["id"])
            if section == "annotations" and (message := count_misfit(entry)) is not None:
                yield _Problem(section, index, message, fatal=False)


def _misfit(section: str, entry: Any) -> str | None:
    """What an entry lacks to be one of its list."""
    for field, kind in _FIELDS[section].items():
        if not isinstance(entry, dict) or type(entry.get(field)) is not kind:
            return (
                f"every entry of {section!r} needs {field!r} of type {kind.__name__}, "
                f"this one does not: {reprlib.repr(entry)}"
            )
    return None


def _annotation_misfit(
    entry: Mapping[str, Any], listed: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> str | None:
    name = f"annotation {entry['id']}"
    for section, field in (("images", "image_id"), ("categories", "category_id")):
        if entry[field] not in listed[section]:
            return f"{name} has {field} {entry[field]}, which {section!r} does not list"
    bbox = entry["bbox"]
    if len(bbox) != 4 or not all(map(is_coordinate, bbox)):
        return f"bbox of {name} must be [x, y, width, height] in pixels, not {reprlib.repr(bbox)}"
    area = entry.get("area", 0)
    if type(area) not in (int, float) or not abs(area) < math.inf:
        return f"{name} needs an area that is a number, or none, not {reprlib.repr(area)}"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"{name} needs an iscrowd of 0 or 1, or none, not {reprlib.repr(entry['iscrowd'])}"
    return keypoints_misfit(entry, listed["categories"][entry["category_id"]])


def _sound(document: dict[str, Any], problems: list[_Problem]) -> dict[str, Any]:
    """The document without malformed entries, the rest completed in place."""
    left_out = {(problem.section, problem.position) for problem in problems if problem.fatal}
    kept = {
        section: [
            entry for i, entry in enumerate(document[section]) if (section, i) not in left_out
        ]
        for section in _FIELDS
    }
    points = {row["id"]: row.get("keypoints") for row in kept["categories"]}
    for entry in kept["annotations"]:
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
        entry.setdefault("iscrowd", 0)
        names = points.get(entry["category_id"])
        if isinstance(names, list) and names:
            entry["keypoints"] = entry.get("keypoints") or [0] * 3 * len(names)
            entry["num_keypoints"] = marked(entry)
    return {**document, **kept}


def for_task(file: AnnotationFile, task: Task) -> AnnotationFile:
    """With the faults of the masks or keypoints of a file, where the task needs them."""
    sized = {row["id"]: row for row in file.document["images"] if size_misfit(row) is None}
    checks: Mapping[Task, Mapping[str, Callable[[Mapping[str, Any]], str | None]]] = {
        "detection": {},
        "segmentation": {
            "images": size_misfit,
            "annotations": lambda row: mask_misfit(row, sized.get(row["image_id"])),
        },
        "keypoint": {"categories": category_misfit, "annotations": mark_misfit},
    }
    found = (
        (entry, misfit(entry))
        for section, misfit in checks[task].items()
        for entry in file.document[section]
    )
    faults = (file.fault(entry, message) for entry, message in found if message is not None)
    return replace(file, faults=(*file.faults, *faults))


def _entry_lines(text: str) -> dict[str, list[int]]:
    """The line of every entry of the lists at the top of a JSON object, by the list's name.

    text: known to be valid JSON, so that only the places of its values have to be found.
    """
    decode = json.JSONDecoder().raw_decode
    lines: dict[str, list[int]] = {}
    position, line, counted = text.index("{") + 1, 1, 0
    while text[position := _next(text, position)] != "}":
        name, position = decode(text, position)
        position = _next(text, position)
        if text[position] != "[":
            _, position = decode(text, position)
            continue
        lines[name] = []  # of a name given twice JSON keeps the last
        position += 1
        while text[position := _next(text, position)] != "]":
            line += text.count("\n", counted, position)
            counted = position
            lines[name].append(line)
            _, position = decode(text, position)
        position += 1
    return lines


_BETWEEN = re.compile(r"[\s,:]*")


def _next(text: str, position: int) -> int:
    """Where the next value, or closing bracket, starts."""
    match = _BETWEEN.match(text, position)
    assert match is not None  # it matches nothing, too
    return match.end()
