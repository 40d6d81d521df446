"""The four kinds of metal parts, as outlines and keypoints; nothing here draws.

A shape lies in its own unit square: u from -0.5 to 0.5 along the part, v across, both -0.5 to 0.5
at most. It is its own mirror image about the line v = 0, which swaps the keypoints named `left_x`
(v < 0) and `right_x`: so a mirrored photo shows the same kind with these two swapped. Keypoints lie
on the metal, a little inside of the edge, never in a hole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2) of u, v


@dataclass(frozen=True, slots=True)
class Solid:
    """A piece of metal. bevel: width of its rounded edge, in units; half its width: a cylinder."""

    outline: Points
    bevel: float


@dataclass(frozen=True, slots=True)
class Relief:
    """A region of the surface that is raised (or, below 0, sunk) by `height` units."""

    outline: Points
    height: float


@dataclass(frozen=True, slots=True)
class Shape:
    """One part: its solids together, less the holes. keypoints: (K, 2) of u, v."""

    solids: tuple[Solid, ...]
    holes: tuple[Points, ...]
    reliefs: tuple[Relief, ...]
    keypoints: Points


@dataclass(frozen=True, slots=True)
class Kind:
    """One category. lengths: of its parts on a 640x480 photo, in pixels from u = -0.5 to 0.5.

    keypoints: their names. skeleton: pairs of them, from 0.
    """

    name: str
    lengths: tuple[float, float]
    build: Callable[[Generator], Shape]
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()


def _points(*rows: tuple[float, float]) -> Points:
    return np.array(rows, np.float64).reshape(-1, 2)


def _disc(u: float, radius: float, v: float = 0.0, corners: int = 48) -> Points:
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([u + radius * np.cos(angle), v + radius * np.sin(angle)], axis=1)


def _bar(u0: float, u1: float, half0: float, half1: float | None = None) -> Points:
    """A bar along u, half0 wide to each side at u0 and half1 at u1."""
    half1 = half0 if half1 is None else half1
    return _points((u0, -half0), (u1, -half1), (u1, half1), (u0, half0))


def _cut_bar(u0: float, u1: float, half: float, cut: float) -> Points:
    """A bar along u whose corners at u0 are cut by `cut`."""
    low, high = u0 + np.sign(u1 - u0) * cut, half - cut
    return _points((low, -half), (u1, -half), (u1, half), (low, half), (u0, high), (u0, -high))


def _wrench(rng: Generator) -> Shape:
    head, tail = rng.uniform(0.13, 0.155), rng.uniform(0.075, 0.09)
    gap, handle = head * rng.uniform(0.45, 0.52), rng.uniform(0.042, 0.055)
    centre, eye = head - 0.5, 0.5 - tail
    throat = centre + head * rng.uniform(0.1, 0.2)
    hole = tail * rng.uniform(0.5, 0.6)
    slot = _points((-0.6, -gap * 1.06), (throat - 0.4 * gap, -gap), (throat, -0.45 * gap))
    slot = np.concatenate([slot, slot[::-1] * (1, -1)])
    panel = (centre + 1.45 * head, eye - 1.6 * tail)
    middle = (panel[0] + panel[1]) / 2
    letters = middle + np.arange(int(rng.integers(4, 9))) * 0.022 - 0.07
    jaw = (centre - 0.55 * head, gap + 0.2 * head)
    return Shape(
        solids=(
            Solid(_disc(centre, head), 0.022),
            Solid(_bar(centre, eye, handle * 1.25, handle), 0.02),
            Solid(_disc(eye, tail), 0.018),
        ),
        holes=(slot, _disc(eye, hole, corners=int(rng.choice([6, 12, 40])))),
        reliefs=(
            Relief(_bar(*panel, handle * 0.62), -0.012),
            *(Relief(_bar(u - 0.005, u + 0.008, handle * 0.25), 0.012) for u in letters),
        ),
        keypoints=_points(
            (jaw[0], -jaw[1]),
            jaw,
            (throat + 0.2 * head, 0),
            (middle, 0),
            (eye + (hole + tail) / 2, 0),
        ),
    )


def _bolt(rng: Generator) -> Shape:
    head, half = rng.uniform(0.16, 0.22), rng.uniform(0.17, 0.22)
    shank = half * rng.uniform(0.48, 0.58)
    collar, thread = head - 0.5, rng.uniform(-0.2, 0.08)
    solids = [
        Solid(_cut_bar(-0.5, collar, half, 0.035), 0.03),
        Solid(_cut_bar(0.5, collar, shank, 0.03), shank),
    ]
    if rng.random() < 0.4:
        solids.append(Solid(_bar(collar - 0.02, collar + 0.03, half * 1.15), 0.02))
    turns = np.arange(thread, 0.485, rng.uniform(0.028, 0.04))
    return Shape(
        solids=tuple(solids),
        holes=(),
        reliefs=(
            Relief(_bar(-0.49, collar, half * 0.5), 0.035),
            *(Relief(_bar(u, u + 0.014, shank * 1.1), -0.02) for u in turns),
        ),
        keypoints=_points(
            (head / 2 - 0.5, -half + 0.03),
            (head / 2 - 0.5, half - 0.03),
            (collar, 0),
            (thread, 0),
            (0.475, 0),
        ),
    )


def _washer(rng: Generator) -> Shape:
    hole = rng.uniform(0.22, 0.3)
    if rng.random() < 0.5:
        outline, ring = _disc(0, 0.5, corners=72), 0.5
    else:
        outline, ring = _teeth(rng, 0.5, rng.uniform(0.38, 0.43)), 0.38
    steps = (Relief(_disc(0, hole + 0.62 * (ring - hole)), -0.03),) if rng.random() < 0.6 else ()
    return Shape((Solid(outline, 0.035),), (_disc(0, hole),), steps, _points())


def _teeth(rng: Generator, outer: float, inner: float) -> Points:
    """The outline of a toothed ring; one tooth in three rings is broken off."""
    count = int(rng.integers(9, 17))
    radius = np.tile([inner, outer, outer, inner], (count, 1))
    if rng.random() < 0.33:
        radius[rng.integers(count)] = inner
    angle = np.arange(count)[:, None] + np.array([0.0, 0.16, 0.44, 0.6])
    angle = angle * (2 * np.pi / count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(-1, 2)


def _bracket(rng: Generator) -> Shape:
    """Two equal legs at right angles, first along a and b, then turned so that they mirror."""
    width, drill = rng.uniform(0.3, 0.38), rng.uniform(0.07, 0.095)
    inner, outer = rng.uniform(0.46, 0.52), 0.82
    cut = rng.uniform(0.03, 0.08)
    half = [(0, cut), (cut, 0), (1 - cut, 0), (1, cut), (1, width - cut), (1 - cut, width)]
    centres = np.array([(inner, width / 2), (outer, width / 2)])
    side = np.array([*half, (width + 0.05, width)])
    outline = np.concatenate([side[1:], side[:0:-1, ::-1]])
    holes = [
        _disc(a, drill, b, 32) for a, b in np.concatenate([centres, centres[:, ::-1]]).tolist()
    ]
    sinks = [(hole - hole.mean(axis=0)) * 1.45 + hole.mean(axis=0) for hole in holes]
    between, end = ((inner + outer) / 2, width / 2), (0.955, width / 2)
    keypoints = [(0.07, 0.07), (width - 0.04, width - 0.04), end, end[::-1], between, between[::-1]]
    return Shape(
        solids=(Solid(_turned(outline), 0.016),),
        holes=tuple(map(_turned, holes)),
        reliefs=tuple(Relief(_turned(sink), -0.014) for sink in sinks),
        keypoints=_turned(np.array(keypoints)),
    )


def _turned(ab: Points) -> Points:
    """From the square of the legs to that of the shape: (0, 0) to u = -0.25, b = a to v = 0."""
    a, b = ab.T / 2
    return np.stack([a + b - 0.25, b - a], axis=1)


KINDS = (
    Kind(
        "wrench",
        (130, 220),
        _wrench,
        ("left_jaw", "right_jaw", "throat", "handle_middle", "tail"),
        ((0, 2), (1, 2), (2, 3), (3, 4)),
    ),
    Kind(
        "bolt",
        (80, 150),
        _bolt,
        ("left_head", "right_head", "collar", "thread_start", "tip"),
        ((0, 2), (1, 2), (2, 3), (3, 4)),
    ),
    Kind("washer", (60, 105), _washer),
    Kind(
        "bracket",
        (120, 190),
        _bracket,
        ("corner", "inner_corner", "left_end", "right_end", "left_leg", "right_leg"),
        ((0, 1), (0, 4), (4, 2), (0, 5), (5, 3)),
    ),
)
