"""Average precision as COCO defines it, by pycocotools: the one place where AP is computed.

Training's validation, the export check and `rfdetr-edge evaluate` all call `average_precision`.
Photos are read as stored, without turning them by their EXIF tag, because annotations refer to
the stored pixels.
"""

import copy
import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import RGB, read_image
from rfdetr_edge.variants import Task

Kind = Literal["bbox", "segm", "keypoints"]
Sigmas = Mapping[int, Sequence[float]]

_TASKS: Mapping[Kind, Task] = {"bbox": "detection", "segm": "segmentation", "keypoints": "keypoint"}
# the most confident ones of a class and image that count in COCO
_MAX_DETECTIONS: Mapping[Kind, int] = {"bbox": 100, "segm": 100, "keypoints": 20}
# columns of COCOeval's IoU thresholds 0.50, 0.55, ..., 0.95
_IOU_50, _IOU_75 = 0, 5


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """COCO's summary, each 0 to 1, NaN where the images hold nothing to find.

    ap: mean over IoU, or OKS, 0.50 to 0.95; ap50, ap75: at one of them; ar: recall, mean over
    all; per_class: ap by class name; images: how many were evaluated.
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
    max_detections: int | None = None,
    kind: Kind = "bbox",
    sigmas: Sigmas | None = None,
) -> AveragePrecision:
    """Compares detections with COCO annotations by their boxes, their masks or their keypoints.

    annotations: a file, or the document that `read_annotations` gave for the task; it is not
    changed.
    detections: by COCO image id, rows in any order, every one above confidence 0, since the low
    ones count too. The images named here are evaluated, an image without detections included;
    others are left aside.
    max_detections: the most confident ones of a class and image that count; None is COCO's own:
    100, of keypoints 20.
    sigmas: of OKS by category id, one a point; None is what the detections' schema says. Keypoints
    are evaluated of the categories that have sigmas, each by its own; the rest are left aside.
    Raises InputError for a file that is no COCO annotation file, for image ids that it lacks, when
    its categories and the class table disagree, and for detections or annotations without what is
    to be compared.
    """
    evaluator, names = _evaluator(annotations, detections, kind, sigmas, max_detections)
    precision = evaluator.eval["precision"][:, :, :, 0, 0]  # (IoU, recall, category)
    return AveragePrecision(
        ap=_mean(precision),
        ap50=_mean(precision[_IOU_50]),
        ap75=_mean(precision[_IOU_75]),
        ar=_mean(evaluator.eval["recall"][:, :, 0, 0]),
        per_class={
            names[category_id]: _mean(precision[:, :, column])
            for column, category_id in enumerate(sorted(names))
        },
        images=len(detections),
    )


def every_precision(
    document: Mapping[str, Any], detections: Mapping[int, Detections]
) -> dict[Kind, AveragePrecision]:
    """COCO's summary of the boxes, and of the masks or keypoints where the detections have them.

    document, detections, errors: as `average_precision` has them.
    """
    return {kind: average_precision(document, detections, kind=kind) for kind in _kinds(detections)}


@dataclass(frozen=True, slots=True)
class PrecisionDrop:
    """How much AP a candidate loses against a reference, in points of 100.

    reference, candidate: their AP, 0 to 1. low, high: the 95 % interval of the drop over which
    images there happen to be (paired bootstrap); negative is a gain.
    """

    reference: float
    candidate: float
    low: float
    high: float

    @property
    def points(self) -> float:
        """The drop itself."""
        return 100 * (self.reference - self.candidate)


def precision_drop(
    annotations: Path | Mapping[str, Any],
    reference: Mapping[int, Detections],
    candidate: Mapping[int, Detections],
    *,
    kind: Kind = "bbox",
    resamples: int = 1000,
    seed: int = 0,
) -> PrecisionDrop:
    """Compares the AP of two artifacts on the same images.

    annotations, detections, kind, errors: as `average_precision` has them.
    resamples: draws of as many images with repetition; both are evaluated on the same draws, and
    the interval is the middle 95 % of the differences (Efron and Tibshirani 1993, chapter 13).
    """
    if set(reference) != set(candidate):
        raise InputError("reference and candidate were run on different images")
    first, second = (
        _evaluator(annotations, found, kind, None, None)[0] for found in (reference, candidate)
    )
    rng = np.random.default_rng(seed)
    count = len(reference)
    drops = [
        100 * (_resampled(first, images) - _resampled(second, images))
        for images in (rng.integers(count, size=count) for _ in range(resamples))
    ]
    low, high = np.nanpercentile(drops, [2.5, 97.5]) if drops else (math.nan, math.nan)
    every = np.arange(count)
    return PrecisionDrop(
        _resampled(first, every), _resampled(second, every), float(low), float(high)
    )


def every_drop(
    document: Mapping[str, Any],
    reference: Mapping[int, Detections],
    candidate: Mapping[int, Detections],
    *,
    resamples: int = 1000,
) -> dict[Kind, PrecisionDrop]:
    """`precision_drop` of the boxes, and of the masks or keypoints where there are any."""
    return {
        kind: precision_drop(document, reference, candidate, kind=kind, resamples=resamples)
        for kind in _kinds(reference)
    }


def _resampled(evaluator: "_ByCategory", images: NDArray[np.int64]) -> float:
    """AP over the images of these numbers, any of them several times."""
    rows, count = evaluator.evalImgs, len(evaluator.params.imgIds)
    drawn = copy.copy(evaluator)
    drawn.evalImgs = [rows[start + i] for start in range(0, len(rows), count) for i in images]
    # to pycocotools an image drawn twice is two images
    drawn.params = drawn._paramsEval = copy.copy(evaluator.params)
    drawn.params.imgIds = list(range(len(images)))
    with redirect_stdout(io.StringIO()):
        drawn.accumulate()
    return _mean(drawn.eval["precision"][:, :, :, 0, 0])


def detect_annotated(
    detector: Detector,
    annotations: Path | Mapping[str, Any],
    images: Path,
    advance: Callable[[], None],
) -> dict[int, Detections]:
    """The detections of every image of COCO annotations, all rows above confidence 0, `encoded`.

    annotations: a file, or the document that `read_annotations` gave. images: the folder that its
    file names refer to. advance: called after each image.
    Raises InputError for an image that is missing, broken, or not of the annotated size.
    """
    name, document = _read(annotations, "detection")
    entries = document["images"]
    size = detector.batch_size or 1
    found: dict[int, Detections] = {}
    for start in range(0, len(entries), size):
        chunk = entries[start : start + size]
        photos = [_annotated_photo(name, images, entry) for entry in chunk]
        detections = detector.predict(photos, threshold=0.0)
        for entry, one in zip(chunk, detections, strict=True):
            found[entry["id"]] = encoded(one)
            advance()
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded(Detections):
    """Detections that keep the rows of COCO results in place of the masks. Not to be indexed."""

    rows: Sequence[Mapping[str, Any]] = ()

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        return [{**row, "image_id": image_id} for row in self.rows]


def encoded(detections: Detections) -> Detections:
    """What evaluation needs of one image's detections.

    Masks become COCO's run lengths: some hundred bytes each, their logits being tens of kilobytes.
    """
    if detections.masks is None:
        return detections
    columns = detections.xyxy, detections.confidence, detections.class_id
    source = detections.classes, detections.source_size
    return _Encoded(*columns, *source, rows=detections.to_coco(0))


def _read(annotations: Path | Mapping[str, Any], task: Task) -> tuple[str, Mapping[str, Any]]:
    """What messages call the annotations, and their document."""
    if isinstance(annotations, Path):
        return str(annotations), read_annotations(annotations, task)
    return "the annotation document", annotations


def _kinds(detections: Mapping[int, Detections]) -> list[Kind]:
    """What the detections can be compared by; those of one artifact are all alike."""
    kinds: list[Kind] = ["bbox"]
    for found in list(detections.values())[:1]:
        if found.masks is not None or isinstance(found, _Encoded):
            kinds.append("segm")
        if found.schema is not None:
            kinds.append("keypoints")
    return kinds


def _sigmas(detections: Mapping[int, Detections], given: Sigmas | None) -> Sigmas:
    """By category id, of the categories with keypoints; those of the schema unless given."""
    found = next(iter(detections.values()))
    points = () if found.schema is None else found.schema.classes
    own = {
        category_id: one.sigmas
        for category_id, one in zip(found.classes.category_ids, points, strict=False)
        if category_id is not None and one.sigmas
    }
    for category_id, values in (given or {}).items():
        if len(values) != (count := len(own.get(category_id, ()))):
            raise InputError(
                f"category {category_id} has {count} keypoints, so as many sigmas, not {values}"
            )
    return own if given is None else given


def _annotated_photo(name: str, images: Path, entry: Mapping[str, Any]) -> RGB:
    path = images / entry["file_name"]
    image = read_image(path, upright=False)
    stated = (entry.get("height"), entry.get("width"))
    if None not in stated and stated != image.shape[:2]:
        raise InputError(
            f"{path} is {image.shape[1]}x{image.shape[0]} pixels, but {name} says "
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


def _check_comparable(name: str, row: Mapping[str, Any], kind: Kind, sigmas: Sigmas) -> None:
    """An annotation must have the mask, or as many keypoints as there are sigmas."""
    called = f"annotation {row['id']} of {name}"
    if kind == "segm" and not row.get("segmentation"):
        raise InputError(f"{called} has no segmentation: mask AP needs one of every annotation")
    if kind == "keypoints":
        given, count = len(row.get("keypoints", ())), len(sigmas[row["category_id"]])
        if given != 3 * count:
            raise InputError(
                f"{called} has {given} keypoint numbers, but the {count} keypoints of its class "
                f"need {3 * count}; evaluate on the data set it was trained for"
            )


class _ByCategory(COCOeval):  # type: ignore[misc]  # pycocotools has no types
    """pycocotools' evaluation, which has one list of sigmas for all, with one a category."""

    sigmas: Sigmas

    def computeOks(self, imgId: int, catId: int) -> Any:
        self.params.kpt_oks_sigmas = np.array(self.sigmas[catId])
        return super().computeOks(imgId, catId)


def _evaluator(
    annotations: Path | Mapping[str, Any],
    detections: Mapping[int, Detections],
    kind: Kind,
    sigmas: Sigmas | None,
    max_detections: int | None,
) -> tuple["_ByCategory", Mapping[int, str]]:
    """pycocotools' evaluation, done, and the names of the evaluated categories by id.

    Its `eval` holds precision (IoU, recall, category, 1, 1) and recall (IoU, category, 1, 1).
    """
    name, document = _read(annotations, _TASKS[kind])
    if not detections:
        raise InputError("there are no detections to evaluate: not one image was given")
    unknown = sorted(set(detections) - {image["id"] for image in document["images"]})
    if unknown:
        raise InputError(f"{name} has no image of id {unknown[0]}; is it the right file?")
    ids = next(iter(detections.values())).classes.foreground()
    _check_categories(name, document, ids)
    if kind not in _kinds(detections):
        raise InputError(f"the detections have no {kind} to evaluate: they are of another task")
    names = {
        category["id"]: category["name"]
        for category in document["categories"]
        if ids.get(category["name"]) == category["id"]
    }
    sigmas = _sigmas(detections, sigmas)
    if kind == "keypoints":
        names = {category_id: names[category_id] for category_id in names if category_id in sigmas}
    rows = [
        row
        for row in document["annotations"]
        if row["image_id"] in detections and row["category_id"] in names
    ]
    for row in rows:
        _check_comparable(name, row, kind, sigmas)
    # numbered from 1: to pycocotools a match with an annotation of id 0 is none
    truth = [{**row, "id": number} for number, row in enumerate(rows, start=1)]
    return _evaluate(truth, detections, names, kind, sigmas, max_detections), names


def _evaluate(
    truth: list[dict[str, Any]],
    detections: Mapping[int, Detections],
    names: Mapping[int, str],
    kind: Kind,
    sigmas: Sigmas,
    max_detections: int | None,
) -> "_ByCategory":
    """The evaluation of the categories of `names`, by id."""
    rows = [
        row
        for image_id, found in detections.items()
        for row in (found if kind == "segm" else replace(found, masks=None)).to_coco(image_id)
    ]
    for number, row in enumerate(rows, start=1):
        row.update(id=number, area=0.0, iscrowd=0)  # areas count for what is evaluated by area
    sizes = {image_id: found.source_size for image_id, found in detections.items()}
    with redirect_stdout(io.StringIO()):  # pycocotools talks
        evaluation = _ByCategory(_index(truth, sizes, names), _index(rows, sizes, names), kind)
        evaluation.sigmas = sigmas
        evaluation.params.maxDets = [max_detections or _MAX_DETECTIONS[kind]]
        # objects of every size together: by size takes three times as long and is not reported
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _index(
    rows: list[dict[str, Any]], sizes: Mapping[int, tuple[int, int]], names: Mapping[int, str]
) -> Any:
    """A COCO object from memory: its own loader wants files, and fails on no detections."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": h, "width": w} for i, (h, w) in sizes.items()],
        "categories": [{"id": category_id, "name": name} for category_id, name in names.items()],
        "annotations": rows,
    }
    coco.createIndex()
    return coco


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]  # pycocotools says -1 for "nothing to find"
    return float(np.mean(known)) if known.size else math.nan
