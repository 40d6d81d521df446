"""ONNX graphs in lower precision, as an `exporters.formats.Lowering`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import onnx

from exporters.calibration import CalibrationSet
from exporters.formats import Choices, Lowering, Target, Tensors
from exporters.linears import Linear, linears
from exporters.observers import Kind
from exporters.onnx_cleanup import cleaned
from exporters.onnx_precision.dynamic import dynamic
from exporters.onnx_precision.fp16 import to_fp16
from exporters.onnx_precision.int8 import calibrated
from exporters.onnx_precision.overflow import overflow_nodes
from exporters.onnx_precision.quantize import SCHEMES
from exporters.onnx_precision.weight_only import weight_only
from rfdetr_edge.metadata import InputSpec, Uncalibrated

_WRITERS: Mapping[Uncalibrated, Callable[[onnx.ModelProto, Sequence[Linear]], onnx.ModelProto]] = {
    "int8-dynamic": dynamic,
    "int8-weight-only": weight_only,
}


def _half(source: Path, tensors: Tensors) -> tuple[bytes, Mapping[str, int]]:
    graph = cleaned(onnx.load(source))
    islands = overflow_nodes(graph, tensors)
    half = to_fp16(graph, islands=islands)
    return half.model.SerializeToString(), {
        "half_nodes": half.half_nodes,
        "island_nodes": half.island_nodes,
        "overflowing_nodes": len(islands),
        "casts": half.casts,
        "subnormal_weights": half.subnormal_weights,
        "zeroed_weights": half.zeroed_weights,
    }


def _calibrated(
    source: Path, images: CalibrationSet, spec: InputSpec, kind: Kind, target: Target
) -> Choices:
    ready = calibrated(onnx.load(source), images, spec, SCHEMES[target], kind)
    return choices(ready.layers, ready.quantized)


def _uncalibrated(source: Path, precision: Uncalibrated) -> Choices:
    graph = cleaned(onnx.load(source))
    write = _WRITERS[precision]
    return choices(linears(graph), lambda chosen: write(graph, chosen))


def choices(
    layers: Sequence[Linear], write: Callable[[Sequence[Linear]], onnx.ModelProto]
) -> Choices:
    """Of a graph's layers. write: the graph with these in INT8."""

    def build(names: Collection[str]) -> bytes:
        model = write([layer for layer in layers if layer.name in names])
        content: bytes = model.SerializeToString()
        return content

    return Choices({layer.name: layer.block for layer in layers}, build, ".onnx")


LOWERING = Lowering(half=_half, calibrated=_calibrated, uncalibrated=_uncalibrated)
