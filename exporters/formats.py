"""What the kinds of artifact differ in for those that lower and judge one, as values.

A module is imported when an artifact of its kind is at hand, and only then.
"""

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from exporters.calibration import CalibrationSet
from exporters.observers import Kind
from exporters.weights import Inspection
from rfdetr_edge.errors import InputError
from rfdetr_edge.metadata import InputSpec, ModelMetadata, Precision, Uncalibrated

Tensors: TypeAlias = Iterable[NDArray[np.float32]]
"""Inputs of a network, (1, 3, H, W) each."""
Target = Literal["cpu", "tensorrt"]
"""Whose int8 arithmetic an artifact is written for."""


@dataclass(frozen=True, slots=True)
class Format:
    """How artifacts of one kind are written and looked into.

    with_metadata: the bytes of an artifact with another document inside. sidecar: whether the
        document lies beside the file too.
    inspected: what a file really holds.
    hidden_faults: of a file that says this of itself, what need not show in the detections on some
        inputs, on this machine; one line each.
    counts: of a file, what its report tells beside all else.
    """

    with_metadata: Callable[[bytes, ModelMetadata], bytes]
    sidecar: bool
    inspected: Callable[[Path], Inspection]
    hidden_faults: Callable[[Path, ModelMetadata, Tensors], list[str]]
    counts: Callable[[Path], Mapping[str, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Artifacts to choose from: any layers may be quantised.

    blocks: the part of the network that each layer belongs to, in the order of the graph.
    build: makes the artifact in which these layers are quantised. suffix: of its file.
    """

    blocks: Mapping[str, str]
    build: Callable[[Collection[str]], bytes]
    suffix: str


@dataclass(frozen=True, slots=True)
class Lowering:
    """How FP32 artifacts of one kind become ones of lower precision.

    half: in half precision, all but what overflows on the inputs; and what was done, in numbers.
    calibrated: with ranges of activations from images. uncalibrated: without.
    """

    half: Callable[[Path, Tensors], tuple[bytes, Mapping[str, int]]]
    calibrated: Callable[[Path, CalibrationSet, InputSpec, Kind, Target], Choices]
    uncalibrated: Callable[[Path, Uncalibrated], Choices]


_MAX_DROP: Mapping[Precision, float] = {
    "fp32": 0.0,
    "fp16": 0.1,
    "int8": 0.5,
    "int8-dynamic": 0.5,
    "int8-weight-only": 0.5,
}
_MAX_DROPS = {".tflite": {**_MAX_DROP, "int8": 1.0, "int8-weight-only": 0.3}}
_FORMATS = {".onnx": "exporters.onnx_precision.format", ".tflite": "exporters.tflite.format"}
_LOWERINGS = {".onnx": "exporters.onnx_precision.lowering", ".tflite": "exporters.tflite.lowering"}


def format_of(artifact: Path) -> Format | None:
    """Of a file, by its suffix; None for a kind that cannot be looked into."""
    module = _FORMATS.get(artifact.suffix.lower())
    if module is None:
        return None
    found: Format = importlib.import_module(module).FORMAT
    return found


def default_max_drop(artifact: Path, precision: Precision) -> float:
    """Points of AP that an artifact of this kind may lose where the user does not say."""
    return _MAX_DROPS.get(artifact.suffix.lower(), _MAX_DROP)[precision]


def lowering_of(source: Path) -> Lowering:
    """Of an FP32 artifact, by its suffix.

    Raises InputError for another kind of file, ModuleNotFoundError without the library that lowers
    this kind (`rfdetr_edge.commands.EXTRAS` says what installs it).
    """
    module = _LOWERINGS.get(source.suffix.lower())
    if module is None:
        kinds = " or ".join(_LOWERINGS)
        raise InputError(f"{source} is no artifact that can be lowered; give an FP32 {kinds}")
    found: Lowering = importlib.import_module(module).LOWERING
    return found
