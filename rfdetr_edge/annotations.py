"""COCO annotation files: reading one, and naming everything that is wrong with it by its line.

Knows nothing of what the annotations are for, and does not look at the images.
"""

import functools
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from rfdetr_edge.errors import InputError

_FIELDS: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}
_LARGEST = 1e9  # far over any coordinate in pixels, far under what float arithmetic overflows at


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
    and `iscrowd` filled in where the file leaves them out. place: the file and line of an entry of
    the document.
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


def read_annotations(path: Path) -> dict[str, Any]:
    """A COCO annotation file; `area` and `iscrowd` are filled in where a file leaves them out.

    Raises InputError that names the first thing that is missing or malformed, and its line.
    """
    file = scan_annotations(path)
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
            if section == "annotations" and (message := _count_misfit(entry)) is not None:
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
    points = entry.get("keypoints") or []
    names = listed["categories"][entry["category_id"]].get("keypoints") or []
    if points and (not isinstance(points, list) or not isinstance(names, list)):
        return f"keypoints of {name} and of its category must be lists"
    if points and len(points) != 3 * len(names):
        return (
            f"{name} has {len(points)} keypoint numbers; its category names {len(names)} "
            f"keypoints, which need {3 * len(names)}"
        )
    if not all(map(is_coordinate, points)):
        return f"keypoints of {name} must be numbers, not {reprlib.repr(points)}"
    return None


def _count_misfit(entry: Mapping[str, Any]) -> str | None:
    counted = _visible(entry)
    if counted is None or entry.get("num_keypoints", counted) == counted:
        return None
    return (
        f"annotation {entry['id']} says num_keypoints {entry['num_keypoints']} but marks {counted} "
        "as visible or hidden: taken as counted"
    )


def _visible(entry: Mapping[str, Any]) -> int | None:
    """How many keypoints are marked, None without any keypoints."""
    points = entry.get("keypoints")
    return sum(mark > 0 for mark in points[2::3]) if points else None


def _sound(document: dict[str, Any], problems: list[_Problem]) -> dict[str, Any]:
    """The document without malformed entries, the rest completed in place."""
    left_out = {(problem.section, problem.position) for problem in problems if problem.fatal}
    kept = {
        section: [
            entry for i, entry in enumerate(document[section]) if (section, i) not in left_out
        ]
        for section in _FIELDS
    }
    for entry in kept["annotations"]:
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
        entry.setdefault("iscrowd", 0)
        if "num_keypoints" in entry and (counted := _visible(entry)) is not None:
            entry["num_keypoints"] = counted
    return {**document, **kept}


def is_coordinate(value: object) -> bool:
    """Whether a value read from a file is a finite number that can be one in pixels."""
    return type(value) in (int, float) and abs(cast(float, value)) < _LARGEST


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
