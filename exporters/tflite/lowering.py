"""TFLite graphs in lower precision by litert-quantizer, as an `exporters.formats.Lowering`.

Linear layers and convolutions are lowered, each by a rule of its own; what adds, normalises,
attends and samples stays in float.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from litert_quantizer.algorithm_manager import AlgorithmName
from litert_quantizer.qtyping import TFLOperationName
from litert_quantizer.quantizer import Quantizer
from numpy.typing import NDArray

from exporters.blocks import block_of
from exporters.calibration import CalibrationSet
from exporters.formats import Choices, Lowering, Target, Tensors
from exporters.observers import Kind, Observer, observer
from exporters.tflite.activations import activations
from exporters.tflite.constants import halved_constants
from exporters.tflite.graph import LAYERS, Product, products, read_model
from rfdetr_edge.associated import read_document, with_document
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.metadata import InputSpec, Uncalibrated
from rfdetr_edge.progress import Progress

Ranges = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""By the name of a tensor its `min` and `max`, (1,) each."""
_Rule = Callable[[Quantizer, str, TFLOperationName], None]

_LARGEST_HALF = float(np.finfo(np.float16).max)
_SMALLEST_HALF = float(np.finfo(np.float16).smallest_subnormal)


def _half(source: Path, tensors: Tensors) -> tuple[bytes, Mapping[str, int]]:
    """Weights alone are halved, so that nothing can overflow on the tensors."""
    content = halved_constants(read_model(source))
    layers = _layers(content)
    halved = [layer for layer in layers if np.abs(layer.weights).max() <= _LARGEST_HALF]
    sizes = [np.abs(layer.weights) for layer in halved]
    model = _lowered(content, halved, _to_half)
    return _with_source_document(model, source), {
        "half_layers": len(halved),
        "float_layers": len(layers) - len(halved),
        "zeroed_weights": sum(int(((s > 0) & (s < _SMALLEST_HALF / 2)).sum()) for s in sizes),
    }


def _calibrated(
    source: Path, images: CalibrationSet, spec: InputSpec, kind: Kind, target: Target
) -> Choices:
    if target != "cpu":
        raise InputError(f"{target} runs no .tflite; make an .onnx for it (--format onnx)")
    content = halved_constants(read_model(source))
    layers = _layers(content)
    names = list(dict.fromkeys(name for layer in layers for name in (layer.data, layer.name)))
    observers: dict[str, Observer] = {name: observer(kind, name) for name in names}
    with Progress("calibration: ranges", len(images)) as progress:
        for values in activations(content, names, images.tensors(spec)):
            for name, seen in observers.items():
                seen.observe(values[name])
            progress.advance()
    ranges = {name: _range(seen) for name, seen in observers.items()}
    return _choices(source, content, layers, _to_static, ranges)


def _range(seen: Observer) -> Mapping[str, NDArray[np.float32]]:
    low, high = seen.range(symmetric=False)
    return {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}


def _uncalibrated(source: Path, precision: Uncalibrated) -> Choices:
    content = halved_constants(read_model(source))
    return _choices(source, content, _layers(content), _UNCALIBRATED[precision], None)


def _choices(
    source: Path, content: bytes, layers: list[Product], rule: _Rule, ranges: Ranges | None
) -> Choices:
    def build(names: Collection[str]) -> bytes:
        chosen = [layer for layer in layers if layer.name in names]
        return _with_source_document(_lowered(content, chosen, rule, ranges), source)

    return Choices({layer.name: block_of(layer.name) for layer in layers}, build, ".tflite")


def _layers(content: bytes) -> list[Product]:
    """What may be lowered."""
    return [
        one for one in products(content) if one.kind in LAYERS and one.weights.dtype == np.float32
    ]


def _with_source_document(model: bytes, source: Path) -> bytes:
    document = read_document(source)
    assert document is not None  # checked before any source is lowered
    return with_document(model, document)


def _lowered(
    content: bytes, layers: list[Product], rule: _Rule, ranges: Ranges | None = None
) -> bytes:
    """The model with these layers lowered by one rule."""
    if not layers:
        return content
    quantizer = Quantizer(content)
    for kind in LAYERS:
        names = [re.escape(layer.name) for layer in layers if layer.kind == kind]
        if names:  # a scope is the name of what an operator gives, and a semicolon
            rule(quantizer, f"^({'|'.join(names)});$", TFLOperationName[kind])
    try:
        # a progress bar for each step, and a warning of an interpreter that it makes
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = quantizer.quantize(ranges, enable_progress_report=False).quantized_model
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"litert-quantizer cannot lower this graph: {error}; export the checkpoint again"
        ) from error
    return bytes(made)


def _to_half(quantizer: Quantizer, scope: str, kind: TFLOperationName) -> None:
    quantizer.add_weight_only_config(scope, kind, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)


def _to_static(quantizer: Quantizer, scope: str, kind: TFLOperationName) -> None:
    quantizer.add_static_config(scope, kind, activation_num_bits=8, weight_num_bits=8)


def _to_dynamic(quantizer: Quantizer, scope: str, kind: TFLOperationName) -> None:
    quantizer.add_dynamic_config(scope, kind, 8)


def _to_weight_only(quantizer: Quantizer, scope: str, kind: TFLOperationName) -> None:
    quantizer.add_weight_only_config(scope, kind, 8)


_UNCALIBRATED: Mapping[Uncalibrated, _Rule] = {
    "int8-dynamic": _to_dynamic,
    "int8-weight-only": _to_weight_only,
}

LOWERING = Lowering(half=_half, calibrated=_calibrated, uncalibrated=_uncalibrated)
