"""Average precision as COCO defines it, by pycocotools: the one place where AP is computed.

Training's validation, the export check and `rfdetr-edge evaluate` all call `average_precision`.
Photos are read as stored, without turning them by their EXIF tag, because annotations refer to
the stored pixels.
"""

import io
import math
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import RGB, read_image

# columns of COCOeval's IoU thresholds 0.50, 0.55, ..., 0.95
_IOU_50, _IOU_75 = 0, 5


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """COCO's summary, each 0 to 1, NaN where the images hold nothing to find.

    ap: mean over IoU 0.50 to 0.95; ap50, ap75: at one IoU; ar: recall, mean over IoU; per_class:
    ap by class name; images: how many were evaluated.
    """

    ap: float
    ap50: float
    ap75: float
    ar: float
    per_class: Mapping[str, float]
    images: int


def average_precision(
    annotations: Path | Mapping[str, Any],
    detections: Mapping[int, Detections],
    *,
    max_detections: int = 100,
) -> AveragePrecision:
    """Compares detections with COCO annotations.

    annotations: a file, or the document that `read_annotations` gave; it is not changed.
    detections: by COCO image id, every row above confidence 0, since the low ones count too. The
    images named here are evaluated, an image without detections included; others are left aside.
    max_detections: the most confident ones of a class and image that count; COCO's own is 100.
    Raises InputError for a file that is no COCO annotation file, for image ids that it lacks, and
    when its categories and the class table disagree.
    """
    document = read_annotations(annotations) if isinstance(annotations, Path) else annotations
    name = str(annotations) if isinstance(annotations, Path) else "the annotation document"
    if not detections:
        raise InputError("there are no detections to evaluate: not one image was given")
    unknown = sorted(set(detections) - {image["id"] for image in document["images"]})
    if unknown:
        raise InputError(f"{name} has no image of id {unknown[0]}; is it the right file?")
    ids = next(iter(detections.values())).classes.foreground()
    _check_categories(name, document, ids)
    names = {
        category["id"]: category["name"]
        for category in document["categories"]
        if ids.get(category["name"]) == category["id"]
    }
    evaluation = _evaluate(document, detections, max_detections)
    evaluation.params.catIds = sorted(names)
    with redirect_stdout(io.StringIO()):  # pycocotools talks
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # (IoU, recall, category)
    return AveragePrecision(
        ap=_mean(precision),
        ap50=_mean(precision[_IOU_50]),
        ap75=_mean(precision[_IOU_75]),
        ar=_mean(evaluation.eval["recall"][:, :, 0, 0]),
        per_class={
            names[category_id]: _mean(precision[:, :, column])
            for column, category_id in enumerate(evaluation.params.catIds)
        },
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


def _check_categories(name: str, document: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Every annotated category must be a class of the table, under the same id and name."""
    used = {annotation["category_id"] for annotation in document["annotations"]}
    names = {category_id: name for name, category_id in ids.items()}
    for category in document["categories"]:
        category_id, called = category["id"], category["name"]
        if category_id not in used or ids.get(called) == category_id:
            continue
        if called in ids or category_id in names:
            raise InputError(
                f"{name} calls category {category_id} {called!r}, the artifact's class table has "
                f"{dict(ids)}; evaluate on the data set it was trained for"
            )
        raise InputError(
            f"{name} has annotations of category {category_id} {called!r}, which is no class of "
            f"the artifact: {dict(ids)}"
        )


def _evaluate(
    document: Mapping[str, Any], detections: Mapping[int, Detections], max_detections: int
) -> Any:
    """pycocotools' evaluation of the images that `detections` names, not yet run."""
    truth = [dict(row) for row in document["annotations"] if row["image_id"] in detections]
    rows = [row for image_id, found in detections.items() for row in found.to_coco(image_id)]
    for number, row in enumerate(rows, start=1):
        row.update(id=number, area=row["bbox"][2] * row["bbox"][3], iscrowd=0)
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            *(_index({**document, "annotations": entries}) for entries in (truth, rows)), "bbox"
        )
    evaluation.params.imgIds = sorted(detections)
    evaluation.params.maxDets = [max_detections]
    # boxes of every size together: those by size take three times as long and are not reported
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    return evaluation


def _index(document: dict[str, Any]) -> Any:
    """A COCO object from memory: its own loader wants files, and fails on no detections."""
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]  # pycocotools says -1 for "nothing to find"
    return float(np.mean(known)) if known.size else math.nan
