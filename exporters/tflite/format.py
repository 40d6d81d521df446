"""TFLite files as an `exporters.formats.Format`."""

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from exporters.formats import Format, Tensors
from exporters.scales import misfit
from exporters.tflite.activations import activations
from exporters.tflite.graph import Product, count_nodes, products, read_model, scales
from exporters.weights import Inspection, fault_of
from rfdetr_edge.associated import model_of, with_document
from rfdetr_edge.backends.litert import open_session
from rfdetr_edge.metadata import ModelMetadata, Precision
from rfdetr_edge.tuning import Tuning


def _with_metadata(content: bytes, metadata: ModelMetadata) -> bytes:
    return with_document(model_of(content), metadata.to_json())


def _inspected(artifact: Path) -> Inspection:
    weights: Counter[Precision] = Counter()
    faults = []
    for product in products(read_model(artifact)):
        weights[_precision(product)] += product.weights.size
        if fault := fault_of(product.weights):
            faults.append(f"the weights of {product.name} are {fault}")
    return Inspection(dict(weights), tuple(faults))


def _precision(product: Product) -> Precision:
    """What its weights work in: how they are stored and, of 8 bits, what they are multiplied by."""
    if product.weights.dtype == np.float32:
        return "fp32"
    if product.weights.dtype == np.float16:
        return "fp16"
    if product.rounded:
        return "int8"
    return "int8-weight-only" if product.restored else "int8-dynamic"


def _hidden_faults(artifact: Path, metadata: ModelMetadata, tensors: Tensors) -> list[str]:
    if metadata.precision != "int8":
        return []
    content = read_model(artifact)
    rounding = scales(content)
    fault = misfit(rounding, activations(content, list(rounding), tensors))
    return [] if fault is None else [fault]


def _counts(artifact: Path) -> Mapping[str, int]:
    content = read_model(artifact)
    in_8_bits = [one for one in products(content) if one.weights.dtype == np.int8]
    with closing(open_session(artifact, provider="xnnpack", tuning=Tuning())) as session:
        partitions = session.partitions
    return {
        "nodes": count_nodes(content),
        "partitions_on_xnnpack": partitions,
        "layers_in_8_bits": len(in_8_bits),
        "layers_with_a_step_for_each_channel": sum(one.channels > 1 for one in in_8_bits),
    }


FORMAT = Format(
    with_metadata=_with_metadata,
    sidecar=True,
    inspected=_inspected,
    hidden_faults=_hidden_faults,
    counts=_counts,
)
