"""A data set on disk: its splits, its classes, and everything that is wrong with it, found at once.

The layouts' readers turn what they find into COCO documents; from there on all are the same.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.annotations import AnnotationFile, Fault
from rfdetr_edge.classes import ClassTable, coco_classes, named_classes
from rfdetr_edge.datasets.coco import ANNOTATIONS, class_rows, read_plain, read_roboflow
from rfdetr_edge.datasets.yolo import DATA_FILES, read_yolo
from rfdetr_edge.errors import InputError
from rfdetr_edge.files import make_folder, replacing

_ROUNDING = 0.5  # pixels a box may reach over the edge before it is worth a word
_SHOWN = 10  # faults in an error message

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """One image of a split.

    boxes: (n, 4) float32 xyxy pixels, clipped to the image; labels: (n,) int64 slots.
    source_size: (height, width) in pixels.
    """

    path: Path
    image_id: int
    source_size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One split: its COCO document, to evaluate by, and its images, in the document's order.

    The document has all annotations, the images only what is learned: no crowds, no empty boxes.
    """

    name: str
    document: dict[str, Any]
    images: tuple[LabelledImage, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """The splits of a folder and the classes they share."""

    root: Path
    classes: ClassTable
    train: Split
    valid: Split
    test: Split | None


_Reader = Callable[[Path], dict[str, AnnotationFile]]


def read_dataset(
    root: Path,
    layout: Literal["roboflow", "coco", "yolo"],
    class_names: Sequence[str] | None = None,
    *,
    report: Path | None,
) -> Dataset:
    """Reads and checks all splits.

    layout: "roboflow" is COCO where `train/_annotations.coco.json` is there, else YOLO; slots are
        then the train split's categories in order of their ids, and the last is background. "coco"
        is COCO's own folders, where a slot is a category id.
    class_names: other names for the classes, in slot order.
    report: file that all faults are written to, one a line; None writes none.
    Raises InputError where a split is missing or a fault is fatal; it shows the first ten. What
    training can work around is logged: boxes outside the image, classes without a box.
    """
    if report is not None:
        report.unlink(missing_ok=True)  # of an earlier run
    reader = _reader(root, layout)
    files = reader(root)
    for name in ("train", "valid"):
        if name not in files:
            raise InputError(f"{root} has no {name} split; the splits' place is {_PLACES[reader]}")
    rows = class_rows(files["train"].document)
    if layout == "coco":
        classes = coco_classes()
        rows = [row for row in rows if row["id"] in classes.category_ids]
    else:
        names = [row["name"] for row in rows]
        classes = named_classes("background-last", names, [row["id"] for row in rows])
    faults = [fault for file in files.values() for fault in file.faults]
    splits = {name: _split(name, file, classes, faults) for name, file in files.items()}
    faults += _split_faults(files, splits, rows, classes)
    _settle(root, faults, report)
    if class_names is not None:
        classes = _renamed(root, classes, class_names)
    called = dict(zip(classes.category_ids, classes.names, strict=True))
    for split in splits.values():
        split.document["categories"] = [{**row, "name": called[row["id"]]} for row in rows]
    return Dataset(root, classes, splits["train"], splits["valid"], splits.get("test"))


_PLACES: Mapping[_Reader, str] = {
    read_roboflow: f"train|valid|test/{ANNOTATIONS}",
    read_plain: "annotations/instances_train2017.json and instances_val2017.json",
    read_yolo: "train|valid|test/images, or what the data file names",
}


def _reader(root: Path, layout: str) -> _Reader:
    if layout == "coco":
        return read_plain
    if layout == "roboflow" and (root / "train" / ANNOTATIONS).is_file():
        return read_roboflow
    if layout == "yolo" or any((root / name).is_file() for name in DATA_FILES):
        return read_yolo
    raise InputError(
        f"{root} holds neither train/{ANNOTATIONS} (COCO) nor {' or '.join(DATA_FILES)} (YOLO); "
        "a data set is a folder with train, valid and test"
    )


def _split_faults(
    files: Mapping[str, AnnotationFile],
    splits: Mapping[str, Split],
    rows: Sequence[Mapping[str, Any]],
    classes: ClassTable,
) -> Iterator[Fault]:
    """What is wrong with splits as a whole. rows: the categories that are classes."""
    train = files["train"]
    if not train.sound:  # whatever it lacks would be missed everywhere
        return
    if not rows:
        yield Fault(train.path, 1, "lists no categories; a detector needs at least one class")
    slots = {slot for image in splits["train"].images for slot in image.labels.tolist()}
    learned = {classes.category_ids[slot] for slot in slots}
    names: set[str] = set()
    for row in rows:
        if row["name"] in names:
            yield train.fault(row, f"two categories have the name {row['name']!r}; rename one")
        names.add(row["name"])
        if learned and row["id"] not in learned:
            message = f"class {row['name']!r} has no box in the train split, and is not learned"
            yield train.fault(row, message, fatal=False)
    known = set(zip(classes.category_ids, classes.names, strict=True))
    home = "COCO (another data set is read as roboflow)" if classes.layout == "coco" else "train"
    for split, file in files.items():
        used = {row["category_id"] for row in file.document["annotations"]}
        for row in file.document["categories"]:
            if row["id"] in used and (row["id"], row["name"]) not in known:
                name = f"category {row['id']} {row['name']!r}"
                yield file.fault(row, f"{name} has annotations but is no class of {home}")
        if file.sound and not any(len(image.labels) for image in splits[split].images):
            message = f"the {split} split has no image with a box: nothing to learn or measure by"
            yield Fault(file.path, int(file.path.is_file()), message)


def _split(name: str, file: AnnotationFile, classes: ClassTable, faults: list[Fault]) -> Split:
    slots = {category_id: slot for slot, category_id in enumerate(classes.category_ids)}
    rows: dict[int, list[dict[str, Any]]] = {row["id"]: [] for row in file.document["images"]}
    for row in file.document["annotations"]:
        if row["category_id"] in slots and not row["iscrowd"] and row["image_id"] in rows:
            rows[row["image_id"]].append(row)
    images = [
        _labelled(file, image, rows[image["id"]], slots, faults)
        for image in file.document["images"]
    ]
    return Split(name, file.document, tuple(images))


def _labelled(
    file: AnnotationFile,
    image: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    slots: Mapping[int | None, int],
    faults: list[Fault],
) -> LabelledImage:
    path, height, width = file.folder / image["file_name"], image["height"], image["width"]
    xywh = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    stated = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = stated.clip(0, [width, height, width, height]).astype(np.float32)
    kept: NDArray[np.bool_] = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    over = np.any(np.abs(boxes - stated) > _ROUNDING, axis=1)
    for index in np.flatnonzero(~kept | over).tolist():
        if kept[index]:
            message = f"reaches over the edge of the {width}x{height} image: clipped"
        elif (xywh[index, 2:] > 0).all():
            message = f"lies outside the {width}x{height} image: not learned"
        else:
            message = "has no area: not learned"
        box = f"box {rows[index]['bbox']} of annotation {rows[index]['id']}"
        faults.append(file.fault(rows[index], f"{box} {message}", fatal=False))
    labels = np.array([slots[row["category_id"]] for row in rows], np.int64)
    return LabelledImage(path, image["id"], (height, width), boxes[kept], labels[kept])


def _settle(root: Path, faults: Sequence[Fault], report: Path | None) -> None:
    """Writes, and logs, what is wrong; raises InputError when a fault is fatal."""
    if report is not None and faults:
        make_folder(report.parent)
        with replacing(report) as temporary:
            text = "".join(f"{fault}\n" for fault in faults)
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    everything = f"; {report} lists all" if report else ""
    fatal = [str(fault) for fault in faults if fault.fatal]
    if fatal:
        rest = [f"and {len(fatal) - _SHOWN} more"] if len(fatal) > _SHOWN else []
        shown = "\n  ".join([*fatal[:_SHOWN], *rest])
        raise InputError(f"{root} cannot be trained on as it is{everything}:\n  {shown}")
    if faults:
        message = "%s: training works around %d of its faults, the first: %s%s"
        logger.warning(message, root, len(faults), faults[0], everything)


def _renamed(root: Path, classes: ClassTable, class_names: Sequence[str]) -> ClassTable:
    slots = [slot for slot, name in enumerate(classes.category_ids) if name is not None]
    if len(slots) != len(class_names) or len(set(class_names)) != len(class_names):
        raise InputError(
            f"class_names must be {len(slots)} different names for the classes of {root}, "
            f"{', '.join(classes.foreground())}; not {', '.join(class_names)}"
        )
    new = dict(zip(slots, class_names, strict=True))
    names = tuple(new.get(slot, name) for slot, name in enumerate(classes.names))
    return replace(classes, names=names)
