"""AP of the artifacts that are timed, on the same annotated images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.result import Accuracy
from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.datasets.coco import ANNOTATIONS
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.evaluation import detect_annotated, every_drop, every_precision

_RESAMPLES = 200  # of an interval; each evaluates all images twice


def annotated_images(dataset: Path) -> int:
    """How many images a folder with annotations lists. Raises InputError where it has none."""
    listing = dataset / ANNOTATIONS
    if not listing.is_file():
        raise InputError(
            f"{dataset} has no {ANNOTATIONS}; give one split's folder, such as data/bccd/test"
        )
    return len(read_annotations(listing)["images"])


def accuracies(
    paths: Sequence[Path], dataset: Path, *, threads: int | None, advance: Callable[[], None]
) -> list[Accuracy]:
    """Of each artifact; losses are against the first.

    dataset: a folder of images and their `_annotations.coco.json`. advance: called after each
    image of each artifact. Raises InputError for what is no artifact, and for annotations that do
    not fit it.
    """
    found: list[Accuracy] = []
    reference: Mapping[int, Detections] = {}
    task = None
    for path in paths:
        with _opened(path, threads) as detector:
            document = read_annotations(dataset / ANNOTATIONS, detector.metadata.task)
            detections = detect_annotated(detector, document, dataset, advance)
            every = every_precision(document, detections)
            kind = list(every)[-1]  # boxes come first, then what the task adds
            drop = None
            if found and detector.metadata.task == task:
                drop = every_drop(document, reference, detections, resamples=_RESAMPLES)[kind]
            if not found:
                reference, task = detections, detector.metadata.task
        found.append(
            Accuracy(
                kind=kind,
                images=every[kind].images,
                ap=every[kind].ap,
                ap50=every[kind].ap50,
                drop=None if drop is None else drop.points,
                low=None if drop is None else drop.low,
                high=None if drop is None else drop.high,
                every={name: asdict(one) for name, one in every.items()},
            )
        )
    return found


def _opened(path: Path, threads: int | None) -> Detector:
    try:
        return Detector(path, threads=threads)
    except ArtifactError as error:
        raise InputError(str(error)) from error
