"""The gate: does an artifact find what its reference finds? Knows nothing of torch.

Both run through the runtime on the same images, and their best pairs of query and class are
matched by class and IoU, whatever their confidence. Exact figures follow float32 rounding, so the
tolerances are tight; what is lost or moved beyond them is named.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.backends import Session, TensorSpec
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import image_files, read_image

MIN_IOU = 0.999
MAX_SCORE_DIFFERENCE = 1e-3
_MOST_PAIRS = 100
_NAMED_FAILURES = 5
# Input noise as large as what float32 arithmetic in another order does to the network's inside.
_NOISE = 1e-5
_NOISE_DRAWS = 3
# The IoU of a sliver says nothing: rounding moves its sides by more than it is wide. Such boxes are
# compared by their corners. Both are shares of the image's sides.
_SLIVER = 2e-3
_SLIVER_TOLERANCE = 2e-5
# Runs of an artifact that takes any number of images.
_DYNAMIC_SIZES = (1, 3)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the gate saw.

    images: how many were compared; unstable: how many were not, since the reference disagrees with
        itself on them and on their mirror images when the input moves by float32 rounding.
    pairs: matched pairs; worst_iou, worst_score_difference: over these.
    failures: one line each, the first few.
    """

    images: int
    unstable: int
    pairs: int
    worst_iou: float
    worst_score_difference: float
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything matched and there was something to match."""
        return self.pairs > 0 and not self.failures

    def __str__(self) -> str:
        seen = (
            f"{self.pairs} pairs on {self.images} images, worst IoU {self.worst_iou:.6f}, "
            f"worst score difference {self.worst_score_difference:.2e}"
        )
        if self.unstable:
            seen += f"; {self.unstable} images left out, where the reference itself is undecided"
        if self.passed:
            return seen
        if not self.failures:
            return f"nothing was compared ({seen}); give more images with --images"
        return "\n  ".join([seen, *self.failures])


def gate_images(folder: Path | None) -> list[Path]:
    """The images of a folder, or the embedded photos. Raises InputError for a folder without."""
    if folder is None:
        return photo_paths()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of images")
    return image_files(folder)


def compare(reference: Session, candidate: Session, images: Iterable[Path]) -> Comparison:
    """Runs both sessions on the images and matches their best pairs, both ways.

    The best min(100, num_select) pairs of each must have a partner of the same class with an IoU
    of at least 0.999 and a score within 1e-3 among the pairs of the other. A pair may lack one
    only at the cut-off, where its score is within 1e-3 of the other's last ranked one, and most
    may not. The candidate runs with full batches, and with one and several images where any number
    will do; every image of a batch is compared. Class tables must be equal.
    Raises what the runtime raises for images and sessions that cannot be used.
    """
    first, second = (Detector.from_session(session) for session in (reference, candidate))
    sizes = (second.batch_size,) if second.batch_size else _DYNAMIC_SIZES
    shaken = [Detector.from_session(ShakenSession(reference, seed)) for seed in range(_NOISE_DRAWS)]
    compared = unstable = 0
    ious: list[float] = []
    scores: list[float] = []
    failures = _table_differences(first, second)
    for path in images:
        image = read_image(path, upright=False)
        judged = [m for size in sizes for m in _compare_views(first, second, shaken, image, size)]
        compared += bool(judged)
        unstable += not judged
        for matched in judged:
            ious += matched.ious
            scores += matched.scores
            failures += [f"{path.name}: {failure}" for failure in matched.failures]
    return Comparison(
        images=compared,
        unstable=unstable,
        pairs=len(ious),
        worst_iou=min(ious, default=0.0),
        worst_score_difference=max(scores, default=0.0),
        failures=_shorten(failures),
    )


class ShakenSession:
    """A session whose inputs get a little noise: what it changes is decided by rounding."""

    def __init__(self, session: Session, seed: int) -> None:
        self._session = session
        self._seed = seed

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Those of the session inside."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of the session inside."""
        return self._session.outputs

    @property
    def metadata_json(self) -> str | None:
        """That of the session inside."""
        return self._session.metadata_json

    @property
    def provider(self) -> str:
        """That of the session inside."""
        return self._session.provider

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs the session inside on the feeds and normal noise of 1e-5."""
        rng = np.random.default_rng(self._seed)
        noisy = {
            name: array + _NOISE * rng.standard_normal(array.shape, np.float32)
            for name, array in feeds.items()
        }
        return self._session.run({name: array.astype(np.float32) for name, array in noisy.items()})

    def close(self) -> None:
        """The session inside stays open: it belongs to whoever opened it."""


@dataclass(frozen=True, slots=True)
class _Matched:
    ious: list[float]
    scores: list[float]
    failures: list[str]


def _table_differences(reference: Detector, candidate: Detector) -> list[str]:
    wanted, found = (detector.metadata.classes.names for detector in (reference, candidate))
    if wanted == found:
        return []
    return [f"the classes are {', '.join(found)} instead of {', '.join(wanted)}"]


def _compare_views(
    reference: Detector,
    candidate: Detector,
    shaken: list[Detector],
    image: NDArray[np.uint8],
    size: int,
) -> list[_Matched]:
    """The first batch of `size` mirror images on some of which the reference is decided.

    One _Matched for each of these; none when the reference is undecided on all of them.
    """
    views = (image, image[:, ::-1], image[::-1], image[::-1, ::-1])
    for start in range(0, len(views), size):
        batch = [views[(start + slot) % len(views)] for slot in range(size)]
        # the reference first, so that a broken checkpoint is not blamed on the artifact
        expected = [_ranked(reference, [view])[0] for view in batch]
        judged = [
            _judge(wanted, found, shaken, view)
            for wanted, found, view in zip(expected, _ranked(candidate, batch), batch, strict=True)
        ]
        decided = [matched for matched in judged if matched is not None]
        if decided:
            return decided
    return []


def _judge(
    expected: Detections, found: Detections, shaken: list[Detector], view: NDArray[np.uint8]
) -> _Matched | None:
    """What was found on a view against what the reference finds; None where that is undecided.

    Two places that nearly tie in the ranking of proposals may change places by rounding alone,
    and then their queries find something else. Where the reference does that to itself, the image
    cannot judge anybody.
    """
    matched = _match_both(expected, found)
    if matched.failures:
        for other in shaken:
            if _match_both(expected, *_ranked(other, [view])).failures:
                return None
    return matched


def _ranked(detector: Detector, images: list[NDArray[np.uint8]]) -> list[Detections]:
    """All num_select pairs, however low their score (a sigmoid is above 0), from one run."""
    return detector.predict(images, threshold=0.0, batch_size=len(images))


def _match_both(reference: Detections, candidate: Detections) -> _Matched:
    forward = _match(reference, candidate, "lost")
    back = _match(candidate, reference, "new")
    return _Matched(forward.ious, forward.scores, forward.failures + back.failures)


def _match(wanted: Detections, offered: Detections, verb: str) -> _Matched:
    """Looks for a partner of each of the best pairs of `wanted`, each partner used once."""
    matched = _Matched([], [], [])
    cut_off = float(offered.confidence[-1]) if len(offered) else 0.0
    free = np.ones(len(offered), bool)
    at_cut_off = 0
    for row in range(min(len(wanted), _MOST_PAIRS)):
        score = float(wanted.confidence[row])
        iou = _agreement(wanted.xyxy[row], offered.xyxy, wanted.source_size)
        difference = np.abs(offered.confidence - score)
        fits = free & (offered.class_id == wanted.class_id[row])
        close = fits & (iou >= MIN_IOU) & (difference <= MAX_SCORE_DIFFERENCE)
        if close.any():
            partner = int(np.flatnonzero(close)[np.argmax(iou[close])])
            free[partner] = False
            matched.ious.append(float(iou[partner]))
            matched.scores.append(float(difference[partner]))
        elif score > cut_off + MAX_SCORE_DIFFERENCE:
            best = float(iou[fits].max(initial=0.0))
            box = [round(side, 1) for side in wanted.xyxy[row].tolist()]
            matched.failures.append(
                f"{verb}: {wanted.class_name[row] or wanted.class_id[row]} {score:.4f} at {box} "
                f"(best IoU in the class {best:.4f})"
            )
        else:
            at_cut_off += 1
    if at_cut_off > len(matched.ious):  # scores so flat that the cut-off would excuse anything
        matched.failures.append(f"{verb}: {at_cut_off} pairs with a score at the cut-off")
    return matched


def _agreement(
    box: NDArray[np.float32], others: NDArray[np.float32], source_size: tuple[int, int]
) -> NDArray[np.float64]:
    """IoU of one xyxy box with (N, 4) others; 1 for slivers whose corners coincide."""
    height, width = source_size
    sides_of_image = np.array([width, height, width, height], np.float64)
    a, b = box / sides_of_image, others / sides_of_image
    sides = (np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2])).clip(min=0)
    intersection = sides.prod(axis=1)
    union = (a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(axis=1) - intersection
    iou: NDArray[np.float64] = intersection / union.clip(min=1e-12)
    if (a[2:] - a[:2]).min() < _SLIVER:
        iou[np.abs(b - a).max(axis=1) <= _SLIVER_TOLERANCE] = 1.0
    return iou


def _shorten(failures: list[str]) -> tuple[str, ...]:
    if len(failures) <= _NAMED_FAILURES:
        return tuple(failures)
    rest = len(failures) - _NAMED_FAILURES
    return (*failures[:_NAMED_FAILURES], f"and {rest} more")
