"""Trying artifacts on images: what a candidate finds, judged by what its reference finds.

Where the images are annotated, a trial measures the AP that is lost; anywhere, how far the
detections agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.agreement import Agreement, agreement, detections
from exporters.calibration import CalibrationSet
from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.backends import Session
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.evaluation import Kind, PrecisionDrop, encoded, every_drop
from rfdetr_edge.progress import Progress
from rfdetr_edge.variants import Task


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What the reference finds on some images, to try candidates against.

    images: in order; image n has the id n. reference: detections of each, every row above 0.
    document: what there is to find, COCO with these ids; None where it is not known.
    """

    images: CalibrationSet
    reference: tuple[Detections, ...]
    document: Mapping[str, Any] | None

    def run(
        self, candidate: Session, *, resamples: int = 0, progress: str | None = None
    ) -> "Outcome":
        """Runs a candidate on the images.

        resamples: of the interval of the drop, 0 for none. progress: label of a progress line, None
            for none.
        """
        found = _all_detections(candidate, self.images, progress)
        agreed = agreement(zip(self.reference, found, strict=True))
        if self.document is None:
            return Outcome(agreed, {}, found)
        first, second = (
            {number: encoded(one) for number, one in enumerate(several)}
            for several in (self.reference, found)
        )
        return Outcome(agreed, every_drop(self.document, first, second, resamples=resamples), found)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial saw.

    agreement: how far the detections agree. drops: AP lost by kind, empty where it was not
    measured. found: the candidate's detections of each image.
    """

    agreement: Agreement
    drops: Mapping[Kind, PrecisionDrop]
    found: tuple[Detections, ...] = field(repr=False)

    @property
    def drop(self) -> float | None:
        """Points of AP lost, of the kind that loses most; None where it was not measured."""
        return max((drop.points for drop in self.drops.values()), default=None)

    def __str__(self) -> str:
        texts = [
            f"{kind} AP {drop.reference:.4f} -> {drop.candidate:.4f}, a loss of {drop.points:.2f} "
            f"points (95 % interval {drop.low:.2f} to {drop.high:.2f})"
            for kind, drop in self.drops.items()
        ]
        return "; ".join([*texts, str(self.agreement)])

    def within(self, max_drop: float) -> bool:
        """Whether at most so many points are lost; without annotations, whether both agree."""
        return self.agreement.close if self.drop is None else self.drop <= max_drop


def trial(reference: Session, images: CalibrationSet) -> Trial:
    """Runs the reference on the images. Raises what the runtime raises."""
    task = Detector.from_session(reference).metadata.task
    document = None if images.annotations is None else _document(images, images.annotations, task)
    return Trial(images, _all_detections(reference, images, "reference on images"), document)


def _all_detections(
    session: Session, images: CalibrationSet, label: str | None
) -> tuple[Detections, ...]:
    with Progress(label or "", len(images), shown=label is not None) as progress:
        return detections(session, images.pixels(), progress.advance)


def _document(images: CalibrationSet, annotations: Path, task: Task) -> dict[str, Any]:
    """The annotations of these images, with their numbers for ids."""
    document = read_annotations(annotations, task)
    ids = {entry["file_name"]: entry["id"] for entry in document["images"]}
    numbers = {ids[name]: number for number, name in enumerate(images.images)}
    return {
        **document,
        "images": [
            {**entry, "id": numbers[entry["id"]]}
            for entry in document["images"]
            if entry["id"] in numbers
        ],
        "annotations": [
            {**row, "image_id": numbers[row["image_id"]]}
            for row in document["annotations"]
            if row["image_id"] in numbers
        ],
    }
