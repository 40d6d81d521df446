"""The gate: does an artifact find what its reference finds? Knows nothing of torch.

Both run through the runtime on the same images, and their best pairs of query and class are
matched by class and IoU, whatever their confidence; the masks or keypoints of a matched pair must
agree too. Exact figures follow float32 rounding, so the tolerances are tight; what is lost or moved
beyond them is named.

Scores are compared before the uncertainty of keypoints lowers them, because only these are sorted
and end in a cut-off. What lowers them, the points' confidence and covariance, is compared itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.difference import LIMITS, Difference, boxes_apart, difference, largest
from rfdetr_edge.backends import Session
from rfdetr_edge.backends.fake import FakeSession
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.images import image_files, read_image
from rfdetr_edge.metadata import ModelMetadata
from rfdetr_edge.variants import Task

_MOST_PAIRS = 100
_NAMED_FAILURES = 5
# Input noise as large as what float32 arithmetic in another order does to the network's inside.
_NOISE = 1e-5
_NOISE_DRAWS = 3
# Runs of an artifact that takes any number of images.
_DYNAMIC_SIZES = (1, 3)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the gate saw.

    images: how many were compared; unstable: how many were not, since the reference disagrees with
        itself on them and on their mirror images when the input moves by float32 rounding.
    pairs: matched pairs; worst: the largest differences over these, None without any.
    failures: one line each, the first few.
    """

    images: int
    unstable: int
    pairs: int
    worst: Difference | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything matched and there was something to match."""
        return self.pairs > 0 and not self.failures

    def __str__(self) -> str:
        seen = f"{self.pairs} pairs on {self.images} images"
        if self.worst is not None:
            seen += f"; the largest differences: {self.worst}"
        if self.unstable:
            seen += f"; {self.unstable} images left out, where the reference itself is undecided"
        if self.passed:
            return seen
        if not self.failures:
            return f"nothing was compared ({seen}); give more images with --images"
        return "\n  ".join([seen, *self.failures])


def gate_images(folder: Path | None, task: Task) -> list[Path]:
    """The images of a folder, or the task's embedded photos. Raises InputError for one without."""
    if folder is None:
        return photo_paths(task)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of images")
    return image_files(folder)


def compare(reference: Session, candidate: Session, images: Iterable[Path]) -> Comparison:
    """Runs both sessions on the images and matches their best pairs, both ways.

    The best min(100, num_select) pairs of each must have a partner of the same class with an IoU
    of at least 0.999 and a score within 1e-3 among the pairs of the other. A pair may lack one
    only at the cut-off, where its score is within 1e-3 of the other's last ranked one, and most
    may not. Partners must also have masks with an IoU of at least 0.999, or points within 0.1 % of
    the box, with a confidence within 1e-3 and a covariance within 1 %.
    The candidate runs with full batches, and with one and several images where any number will do;
    every image of a batch is compared. Where the two state another task, resolution, class table,
    mask stride or keypoint schema, that is the failure and nothing is run.
    Raises what the runtime raises for images and sessions that cannot be used.
    """
    wanted, found = (Detector.from_session(session).metadata for session in (reference, candidate))
    failures = contradictions(wanted, found)
    first, second = _detector(reference, wanted), _detector(candidate, found)
    sizes = (second.batch_size,) if second.batch_size else _DYNAMIC_SIZES
    shaken = [_detector(reference, wanted, seed) for seed in range(_NOISE_DRAWS)]
    compared = unstable = 0
    pairs: list[Difference] = []
    for path in () if failures else images:
        image = read_image(path, upright=False)
        judged = [m for size in sizes for m in _compare_views(first, second, shaken, image, size)]
        compared += bool(judged)
        unstable += not judged
        for matched in judged:
            pairs += matched.pairs
            failures += [f"{path.name}: {failure}" for failure in matched.failures]
    return Comparison(
        images=compared,
        unstable=unstable,
        pairs=len(pairs),
        worst=largest(pairs),
        failures=_shorten(failures),
    )


def _detector(session: Session, metadata: ModelMetadata, noise_seed: int | None = None) -> Detector:
    """The runtime on a session, with class scores for confidences.

    metadata: what the runtime takes the session for. noise_seed: the input gets a little noise;
    what that changes is decided by rounding.
    """

    def run(feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        if noise_seed is None:
            return session.run(feeds)
        rng = np.random.default_rng(noise_seed)
        return session.run(
            {
                name: array + np.float32(_NOISE) * rng.standard_normal(array.shape, np.float32)
                for name, array in feeds.items()
            }
        )

    if metadata.keypoints is not None:
        metadata = replace(metadata, keypoints=replace(metadata.keypoints, trace_alpha=0.0))
    seen = FakeSession(run, session.inputs, session.outputs, metadata.to_json(), session.provider)
    return Detector.from_session(seen)


def reject(temporary: Path, output: Path, reason: object) -> ArtifactError:
    """Keeps a file as `<output>.rejected` for inspection; the error that says so."""
    rejected = rejected_path(output)
    temporary.replace(rejected)
    return ArtifactError(f"the export differs from its source and is kept as {rejected}: {reason}")


def rejected_path(output: Path) -> Path:
    """Where a file is kept that was refused; of a link, beside what it points to."""
    target = output.resolve()
    return target.with_name(f"{target.name}.rejected")


def contradictions(reference: ModelMetadata, candidate: ModelMetadata) -> list[str]:
    """What the two say of themselves that must be equal and is not, one line each."""
    wanted, found = _statements(reference), _statements(candidate)
    return [
        f"the {what}: {found.get(what)} instead of {wanted[what]}"
        for what in wanted
        if found.get(what) != wanted[what]
    ]


def _statements(metadata: ModelMetadata) -> dict[str, object]:
    stated: dict[str, object] = {
        "task": metadata.task,
        "resolution": metadata.input.resolution,
        "mean": metadata.input.mean,
        "std": metadata.input.std,
        "antialias": metadata.input.antialias,
        "classes": ", ".join(metadata.classes.names),
        "mask stride": metadata.mask_stride,
    }
    if metadata.keypoints is not None:
        schema = metadata.keypoints.to_dict()
        stated["trace_alpha"] = schema["trace_alpha"]
        for part in ("names", "skeleton", "sigmas", "flip_pairs"):
            stated[f"keypoint {part}"] = [one[part] for one in schema["classes"]]
    return stated


@dataclass(frozen=True, slots=True)
class _Matched:
    pairs: list[Difference]
    failures: list[str]


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
    return _Matched(forward.pairs, forward.failures + back.failures)


def _match(wanted: Detections, offered: Detections, verb: str) -> _Matched:
    """Looks for a partner of each of the best pairs of `wanted`, each partner used once."""
    matched = _Matched([], [])
    cut_off = float(offered.confidence[-1]) if len(offered) else 0.0
    free = np.ones(len(offered), bool)
    at_cut_off = 0
    for row in range(min(len(wanted), _MOST_PAIRS)):
        score = float(wanted.confidence[row])
        boxes = boxes_apart(wanted.xyxy[row], offered.xyxy, wanted.source_size)
        scores = np.abs(offered.confidence - score)
        fits = free & (offered.class_id == wanted.class_id[row])
        close = fits & (boxes <= LIMITS.box) & (scores <= LIMITS.score)
        corners = [round(side, 1) for side in wanted.xyxy[row].tolist()]
        name = f"{wanted.class_name[row] or wanted.class_id[row]} {score:.4f} at {corners}"
        if close.any():
            # the scores tell boxes apart that both fill the image
            partner = int(np.argmin(np.where(close, boxes + scores, np.inf)))
            free[partner] = False
            pair = difference(wanted[row], offered[partner])
            matched.pairs.append(pair)
            if not pair.within(LIMITS):
                matched.failures.append(f"{verb}: {name} ({pair})")
        elif score > cut_off + LIMITS.score:
            best = 1.0 - float(boxes[fits].min(initial=1.0))
            matched.failures.append(f"{verb}: {name} (best IoU in the class {best:.4f})")
        else:
            at_cut_off += 1
    if at_cut_off > len(matched.pairs):  # scores so flat that the cut-off would excuse anything
        matched.failures.append(f"{verb}: {at_cut_off} pairs with a score at the cut-off")
    return matched


def _shorten(failures: list[str]) -> tuple[str, ...]:
    if len(failures) <= _NAMED_FAILURES:
        return tuple(failures)
    rest = len(failures) - _NAMED_FAILURES
    return (*failures[:_NAMED_FAILURES], f"and {rest} more")
