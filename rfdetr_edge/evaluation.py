"""Average precision as COCO defines it, by pycocotools: the one place where AP is computed.

Training's validation, the export check and `rfdetr-edge evaluate` all call `average_precision`.
Photos are read as stored, without turning them by their EXIF tag, because annotations refer to
the stored pixels.
"""

import io
import json
import math
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import RGB, read_image

# where COCOeval.summarize leaves what we report
_AP, _AP50, _AP75, _AR100 = 0, 1, 2, 8


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """COCO's summary, each 0 to 1, NaN where the images hold nothing to find.

    ap: mean over IoU 0.50 to 0.95; ap50, ap75: at one IoU; ar100: recall of at most 100 detections
    a class and image, mean over IoU; per_class: ap by class name; images: how many were evaluated.
    """

    ap: float
    ap50: float
    ap75: float
    ar100: float
    per_class: Mapping[str, float]
    images: int


def average_precision(annotations: Path, detections: Mapping[int, Detections]) -> AveragePrecision:
    """Compares detections with a COCO annotation file.

    detections: by COCO image id, every row above confidence 0, since the low ones count too. The
    images named here are evaluated, an image without detections included; others are left aside.
    Raises InputError for a file that is no COCO annotation file, for image ids that it lacks, and
    when its categories and the class table disagree.
    """
    document = read_annotations(annotations)
    if not detections:
        raise InputError("there are no detections to evaluate: not one image was given")
    unknown = sorted(set(detections) - {image["id"] for image in document["images"]})
    if unknown:
        raise InputError(f"{annotations} has no image of id {unknown[0]}; is it the right file?")
    _check_categories(annotations, document, next(iter(detections.values())).classes)
    rows = [row for image_id, found in detections.items() for row in found.to_coco(image_id)]
    for number, row in enumerate(rows, start=1):
        row.update(id=number, area=row["bbox"][2] * row["bbox"][3], iscrowd=0)
    with redirect_stdout(io.StringIO()):  # pycocotools talks
        evaluation = COCOeval(_index(document), _index({**document, "annotations": rows}), "bbox")
        evaluation.params.imgIds = sorted(detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {category["id"]: category["name"] for category in document["categories"]}
    return AveragePrecision(
        ap=_share(evaluation.stats[_AP]),
        ap50=_share(evaluation.stats[_AP50]),
        ap75=_share(evaluation.stats[_AP75]),
        ar100=_share(evaluation.stats[_AR100]),
        per_class=_per_class(evaluation, names),
        images=len(detections),
    )


def detect_annotated(
    detector: Detector, annotations: Path, images: Path, advance: Callable[[], None]
) -> dict[int, Detections]:
    """The detections of every image of a COCO annotation file, all rows above confidence 0.

    images: the folder that its file names refer to. advance: called after each image.
    Raises InputError for an image that is missing, broken, or not of the annotated size.
    """
    entries = read_annotations(annotations)["images"]
    size = detector.batch_size or 1
    found: dict[int, Detections] = {}
    for start in range(0, len(entries), size):
        chunk = entries[start : start + size]
        photos = [_annotated_photo(annotations, images, entry) for entry in chunk]
        detections = detector.predict(photos, threshold=0.0)
        for entry, one in zip(chunk, detections, strict=True):
            found[entry["id"]] = one
            advance()
    return found


def _annotated_photo(annotations: Path, images: Path, entry: Mapping[str, Any]) -> RGB:
    path = images / entry["file_name"]
    image = read_image(path, upright=False)
    stated = (entry.get("height"), entry.get("width"))
    if None not in stated and stated != image.shape[:2]:
        raise InputError(
            f"{path} is {image.shape[1]}x{image.shape[0]} pixels, but {annotations} says "
            f"{stated[1]}x{stated[0]}: its boxes belong to another picture"
        )
    return image


def read_annotations(path: Path) -> dict[str, Any]:
    """A COCO annotation file; `area` and `iscrowd` are filled in where a file leaves them out.

    Raises InputError that names what is missing or malformed.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotation file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a JSON annotation file: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} is no COCO annotation file: it holds no JSON object")
    _check_entries(path, document, "images", {"id": int, "file_name": str})
    _check_entries(path, document, "categories", {"id": int, "name": str})
    _check_entries(
        path,
        document,
        "annotations",
        {"id": int, "image_id": int, "category_id": int, "bbox": list},
    )
    for annotation in document["annotations"]:
        bbox = annotation["bbox"]
        if len(bbox) != 4 or not all(map(_is_number, bbox)):
            raise InputError(
                f"{path}: bbox of annotation {annotation['id']} must be [x, y, width, height] in "
                f"pixels, not {bbox}"
            )
        annotation.setdefault("area", bbox[2] * bbox[3])
        annotation.setdefault("iscrowd", 0)
    return document


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_entries(
    path: Path, document: dict[str, Any], key: str, fields: Mapping[str, type]
) -> None:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise InputError(f"{path} is no COCO annotation file: it has no list {key!r}")
    for entry in entries:
        for field, kind in fields.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                raise InputError(
                    f"{path}: every entry of {key!r} needs {field!r} of type {kind.__name__}, "
                    f"this one does not: {entry}"
                )


def _check_categories(path: Path, document: dict[str, Any], classes: ClassTable) -> None:
    """Every annotated category must be a class of the table, under the same id and name."""
    used = {annotation["category_id"] for annotation in document["annotations"]}
    ids = classes.foreground()
    names = {category_id: name for name, category_id in ids.items()}
    for category in document["categories"]:
        category_id, name = category["id"], category["name"]
        if ids.get(name, category_id) != category_id or names.get(category_id, name) != name:
            raise InputError(
                f"{path} calls category {category_id} {name!r}, the artifact's class table has "
                f"{ids}; evaluate on the data set it was trained for"
            )
        if category_id in used and name not in ids:
            raise InputError(
                f"{path} has annotations of category {category_id} {name!r}, which is no class of "
                f"the artifact: {ids}"
            )


def _index(document: dict[str, Any]) -> Any:
    """A COCO object from memory: its own loader wants files, and fails on no detections."""
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


def _share(value: float) -> float:
    return math.nan if value < 0 else float(value)  # pycocotools says -1 for "nothing to find"


def _per_class(evaluation: Any, names: Mapping[int, str]) -> dict[str, float]:
    precision = evaluation.eval["precision"]  # (IoU, recall, category, area, most detections)
    result = {}
    for column, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, column, 0, -1]
        known = values[values > -1]
        result[names[category_id]] = float(np.mean(known)) if known.size else math.nan
    return result
