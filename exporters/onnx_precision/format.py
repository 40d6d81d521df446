"""ONNX files as an `exporters.formats.Format`."""

from collections.abc import Mapping
from pathlib import Path

import onnx

from exporters.formats import Format, Tensors
from exporters.inspection import inspected
from exporters.onnx_graph import with_metadata
from exporters.onnx_precision.activations import activations
from exporters.onnx_precision.overflow import overflows
from exporters.onnx_precision.quantize import scales
from exporters.scales import misfit
from exporters.weights import Inspection
from rfdetr_edge.metadata import ModelMetadata


def _hidden_faults(artifact: Path, metadata: ModelMetadata, tensors: Tensors) -> list[str]:
    model = onnx.load(artifact)
    if metadata.precision == "int8":
        rounding = scales(model)
        fault = misfit(rounding, activations(model, list(rounding), tensors)) if rounding else None
        return [] if fault is None else [fault]
    if metadata.precision == "fp16" and (nodes := overflows(model, tensors)):
        return [
            f"half precision overflows in {len(nodes)} nodes, first in {nodes[0]}: a GPU would "
            "give NaN; leave them in float32"
        ]
    return []


def _inspected(artifact: Path) -> Inspection:
    return inspected(onnx.load(artifact))


def _counts(artifact: Path) -> Mapping[str, int]:
    return {"nodes": len(onnx.load(artifact).graph.node)}


FORMAT = Format(
    with_metadata=with_metadata,
    sidecar=False,
    inspected=_inspected,
    hidden_faults=_hidden_faults,
    counts=_counts,
)
