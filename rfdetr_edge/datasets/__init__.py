"""A data set on disk: its splits, its classes, and everything that is wrong with it, found at once.

The layouts' readers turn what they find into COCO documents; from there on all are the same.
"""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.annotation_shapes import category_keypoints
from rfdetr_edge.annotations import AnnotationFile, Fault, for_task
from rfdetr_edge.classes import ClassTable, coco_classes, named_classes
from rfdetr_edge.datasets.coco import ANNOTATIONS, class_rows, read_plain, read_roboflow
from rfdetr_edge.datasets.yolo import DATA_FILES, read_yolo
from rfdetr_edge.errors import InputError
from rfdetr_edge.files import make_folder, replacing
from rfdetr_edge.keypoint_schema import ClassKeypoints, KeypointSchema
from rfdetr_edge.variants import Task

_ROUNDING = 0.5  # pixels a box may reach over the edge before it is worth a word
_SHOWN = 10  # faults in an error message

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """One image of a split.

    boxes: (n, 4) float32 xyxy pixels, clipped to the image; labels: (n,) int64 slots.
    source_size: (height, width) in pixels.
    segmentations: COCO polygons or RLE, one a box; () unless the task is segmentation.
    keypoints: (n, K, 3) float32, x and y in pixels and v: 0 not labelled, 1 hidden, 2 visible;
        K is the schema's widest, and 0 unless the task is keypoint.
    """

    path: Path
    image_id: int
    source_size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    segmentations: tuple[Any, ...]
    keypoints: NDArray[np.float32]


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
    """The splits of a folder, the classes they share, and for keypoints the points of these."""

    root: Path
    classes: ClassTable
    train: Split
    valid: Split
    test: Split | None
    schema: KeypointSchema | None


def read_dataset(
    root: Path,
    layout: Literal["roboflow", "coco", "yolo"],
    class_names: Sequence[str] | None = None,
    *,
    report: Path | None,
    task: Task = "detection",
) -> Dataset:
    """Reads and checks all splits.

    layout: "roboflow" is COCO where `train/_annotations.coco.json` is there, else YOLO; slots are
        then the train split's categories in order of their ids, and the last is background. "coco"
        is COCO's own folders, where a slot is a category id.
    class_names: other names for the classes, in slot order.
    report: file that all faults are written to, one a line; None writes none.
    task: what has to be there beside the boxes. The keypoint schema is the train split's: a class
        slot has the points of its category.
    Raises InputError where a split is missing or a fault is fatal; it shows the first ten. What
    training can work around is logged: boxes outside the image, classes without a box.
    """
    if report is not None:
        report.unlink(missing_ok=True)  # of an earlier run
    files, places = _read(root, layout, task)
    for name in ("train", "valid"):
        if name not in files:
            raise InputError(f"{root} has no {name} split; the splits' place is {places}")
    rows = class_rows(files["train"].document)
    if layout == "coco":
        classes = coco_classes()
        rows = [row for row in rows if row["id"] in classes.category_ids]
    else:
        names = [row["name"] for row in rows]
        classes = named_classes("background-last", names, [row["id"] for row in rows])
    faults = [fault for file in files.values() for fault in file.faults]
    schema = None
    if task == "keypoint" and files["train"].sound:
        schema = _schema(files["train"], rows, classes, faults)
    read = functools.partial(_split, classes=classes, task=task, schema=schema, faults=faults)
    splits = {name: read(name, file) for name, file in files.items()}
    faults += _split_faults(files, splits, rows, classes)
    if schema is not None:
        faults += _keypoint_faults(files, splits, rows)
    _settle(root, faults, report)
    if class_names is not None:
        classes = _renamed(root, classes, class_names)
    called = dict(zip(classes.category_ids, classes.names, strict=True))
    for split in splits.values():
        split.document["categories"] = [{**row, "name": called[row["id"]]} for row in rows]
    return Dataset(root, classes, splits["train"], splits["valid"], splits.get("test"), schema)


def _read(root: Path, layout: str, task: Task) -> tuple[dict[str, AnnotationFile], str]:
    """The splits of a data set, and where its layout has them."""
    if layout == "coco":
        stem = "person_keypoints" if task == "keypoint" else "instances"
        files = read_plain(root, stem)
        places = f"annotations/{stem}_train2017.json and {stem}_val2017.json"
    elif layout == "roboflow" and (root / "train" / ANNOTATIONS).is_file():
        files, places = read_roboflow(root), f"train|valid|test/{ANNOTATIONS}"
    elif layout == "yolo" or any((root / name).is_file() for name in DATA_FILES):
        files = read_yolo(root)
        places = "train|valid|test/images, or what the data file names"
    else:
        raise InputError(
            f"{root} holds neither train/{ANNOTATIONS} (COCO) nor {' or '.join(DATA_FILES)} "
            "(YOLO); a data set is a folder with train, valid and test"
        )
    return {name: for_task(file, task) for name, file in files.items()}, places


def _schema(
    train: AnnotationFile,
    rows: Sequence[Mapping[str, Any]],
    classes: ClassTable,
    faults: list[Fault],
) -> KeypointSchema | None:
    """The points of every slot up to the last class; None, and a fault, where there are none."""
    points: dict[int | None, ClassKeypoints]
    points = {row["id"]: category_keypoints(row) for row in rows}
    if any(one.names for one in points.values()):
        last = max(classes.category_ids.index(category_id) for category_id in points)
        ids = classes.category_ids[: last + 1]
        return KeypointSchema(tuple(points.get(one, ClassKeypoints()) for one in ids))
    message = (
        "no class has keypoints: a keypoint variant needs them named, by 'keypoints' of a category "
        "(COCO) or by kpt_shape (YOLO); train a detection variant, or add them"
    )
    faults.append(Fault(train.path, int(train.path.is_file()), message))
    return None


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


def _keypoint_faults(
    files: Mapping[str, AnnotationFile],
    splits: Mapping[str, Split],
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[Fault]:
    """Where the points of a split are not those of train. rows: train's categories."""
    known = {row["id"]: row.get("keypoints") or [] for row in rows}
    for split, file in files.items():
        for row in file.document["categories"]:
            names = row.get("keypoints") or []
            if names != known.get(row["id"], names):
                message = f"category {row['id']} {row['name']!r} has other keypoints than in train"
                yield file.fault(row, message)
        if file.sound and not any(image.keypoints[..., 2].any() for image in splits[split].images):
            message = f"the {split} split has no labelled keypoint: nothing to learn or measure by"
            yield Fault(file.path, int(file.path.is_file()), message)


def _split(
    name: str,
    file: AnnotationFile,
    *,
    classes: ClassTable,
    task: Task,
    schema: KeypointSchema | None,
    faults: list[Fault],
) -> Split:
    slots = {category_id: slot for slot, category_id in enumerate(classes.category_ids)}
    rows: dict[int, list[dict[str, Any]]] = {row["id"]: [] for row in file.document["images"]}
    for row in file.document["annotations"]:
        if row["category_id"] in slots and not row["iscrowd"] and row["image_id"] in rows:
            rows[row["image_id"]].append(row)
    images = []
    for image in file.document["images"]:
        learned, boxes = _learned(file, image, rows[image["id"]], faults)
        size = (image["height"], image["width"])
        labels = np.array([slots[row["category_id"]] for row in learned], np.int64)
        masks = tuple(row.get("segmentation") for row in learned if task == "segmentation")
        points = _padded([row.get("keypoints") or [] for row in learned], schema)
        path = file.folder / image["file_name"]
        images.append(LabelledImage(path, image["id"], size, boxes, labels, masks, points))
    return Split(name, file.document, tuple(images))


def _learned(
    file: AnnotationFile,
    image: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    faults: list[Fault],
) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    """The annotations of an image whose boxes have area inside it, and these boxes as xyxy."""
    height, width = image["height"], image["width"]
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
    return [row for row, keep in zip(rows, kept, strict=True) if keep], boxes[kept]


def _padded(rows: Sequence[list[float]], schema: KeypointSchema | None) -> NDArray[np.float32]:
    """Flat lists of keypoints as (n, K, 3)."""
    widest = schema.widest if schema else 0
    flat = np.zeros((len(rows), 3 * widest), np.float32)
    for points, row in zip(flat, rows, strict=True):
        points[: len(row)] = row[: 3 * widest]  # more than K are a fault of the split
    return flat.reshape(len(rows), widest, 3)


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
