"""The keypoint schema: which points each class has, and what they mean.

A keypoint model numbers the points of every class on its own. In its output they are padded: class
slot c owns the columns `c * widest` to `c * widest + counts[c]`. Two forms exist. In the current
one the first slot has points (counts `[17]`); in the legacy one slot 0 is background and has none
(`[0, 17]`). Slots beyond the schema have no points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rfdetr_edge.errors import InputError

TRACE_ALPHA = 0.2
_SIGMA = 0.05

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ClassKeypoints:
    """The points of one class; without any it is `ClassKeypoints()`.

    names: of the points, in order. skeleton: pairs of points, from 0, that a line joins.
    sigmas: of OKS, one a point: how far annotators differ, as a share of the object's size.
    flip_pairs: pairs of points, from 0, that a mirror image swaps.
    Raises InputError for counts that differ and for pairs of points that are not there.
    """

    names: tuple[str, ...] = ()
    skeleton: Pairs = ()
    sigmas: tuple[float, ...] = ()
    flip_pairs: Pairs = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if len(self.sigmas) != count or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise InputError(f"{count} keypoints need as many sigmas above 0, not {self.sigmas}")
        for what, pairs in (("skeleton", self.skeleton), ("flip_pairs", self.flip_pairs)):
            for pair in pairs:
                if len(set(pair)) != 2 or not all(0 <= point < count for point in pair):
                    raise InputError(f"{what} pairs two of {count} keypoints, from 0; not {pair}")
        flipped = [point for pair in self.flip_pairs for point in pair]
        if len(set(flipped)) != len(flipped):
            raise InputError(f"flip_pairs names a keypoint twice: {self.flip_pairs}")


@dataclass(frozen=True, slots=True)
class KeypointSchema:
    """The points of every class, by slot from 0.

    trace_alpha: how much the uncertainty of the points lowers the confidence of a detection
        (postprocess.md section 4); 0 leaves it alone.
    Raises InputError when no class has a point.
    """

    classes: tuple[ClassKeypoints, ...]
    trace_alpha: float = TRACE_ALPHA

    def __post_init__(self) -> None:
        if not any(one.names for one in self.classes):
            raise InputError("a keypoint schema needs a class with keypoints; this one has none")
        if not 0 <= self.trace_alpha < math.inf:
            raise InputError(f"trace_alpha must be 0 or more, not {self.trace_alpha}")

    @property
    def counts(self) -> tuple[int, ...]:
        """How many points each class has."""
        return tuple(len(one.names) for one in self.classes)

    @property
    def widest(self) -> int:
        """The most points of any class: the columns each class is padded to."""
        return max(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `parse_schema` reads them."""
        return {"trace_alpha": self.trace_alpha, "classes": [asdict(one) for one in self.classes]}


def parse_schema(document: Any) -> KeypointSchema:
    """Reads what `to_dict` wrote. Raises InputError that names what is wrong."""
    plain = document if isinstance(document, Mapping) else {}
    classes: Any = plain.get("classes")
    alpha: Any = plain.get("trace_alpha")
    if not isinstance(classes, list) or type(alpha) not in (int, float):
        raise InputError("a keypoint schema is {'trace_alpha': number, 'classes': [...]}")
    return KeypointSchema(tuple(map(_parse_class, classes)), alpha)


def _parse_class(entry: Any) -> ClassKeypoints:
    kinds: dict[str, Any] = {"names": str, "sigmas": int | float, "skeleton": Sequence}
    for name, kind in {**kinds, "flip_pairs": Sequence}.items():
        values = entry.get(name) if isinstance(entry, Mapping) else None
        # a text would be a sequence of texts
        if not isinstance(values, list | tuple) or not all(isinstance(v, kind) for v in values):
            raise InputError(f"a class of the keypoint schema needs a list {name!r}: {entry}")
    for pair in (*entry["skeleton"], *entry["flip_pairs"]):
        if len(pair) != 2 or not all(type(point) is int for point in pair):
            raise InputError(f"keypoint pairs are two whole numbers from 0, not {pair}")
    return ClassKeypoints(
        tuple(entry["names"]),
        tuple((first, second) for first, second in entry["skeleton"]),
        tuple(entry["sigmas"]),
        tuple((first, second) for first, second in entry["flip_pairs"]),
    )


# fmt: off
_PERSON_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
    "right_knee", "left_ankle", "right_ankle",
)
_PERSON_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107,
    0.087, 0.087, 0.089, 0.089,
)
_PERSON_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)
# fmt: on


def class_keypoints(
    names: Sequence[str], skeleton: Pairs = (), sigmas: Sequence[float] | None = None
) -> ClassKeypoints:
    """The points of a class by their names; `left_x` and `right_x` are a flip pair.

    sigmas: None is COCO's for 17 points, the points of a person, and 0.05 for all others
    (training.md section 7).
    """
    if sigmas is None:
        sigmas = _PERSON_SIGMAS if len(names) == len(_PERSON_SIGMAS) else [_SIGMA] * len(names)
    places = {name: place for place, name in enumerate(names)}
    flips = tuple(
        (place, places[other])
        for name, place in places.items()
        if name.startswith("left") and (other := "right" + name[4:]) in places
    )
    return ClassKeypoints(tuple(names), skeleton, tuple(sigmas), flips)


PERSON = class_keypoints(_PERSON_NAMES, _PERSON_SKELETON)
"""COCO's 17 points of a person."""


def numbered_schema(counts: Sequence[int], trace_alpha: float = TRACE_ALPHA) -> KeypointSchema:
    """The schema of a model whose points nobody has named; 17 points are a person's."""
    person = len(PERSON.names)
    classes = [
        PERSON if count == person else class_keypoints([f"point {i}" for i in range(count)])
        for count in counts
    ]
    return KeypointSchema(tuple(classes), trace_alpha)
