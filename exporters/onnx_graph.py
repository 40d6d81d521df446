"""Finishing an ONNX file: the shapes of its outputs and the metadata inside."""

from pathlib import Path

import onnx

from rfdetr_edge.metadata import METADATA_KEY, ModelMetadata

BATCH_AXIS = "batch"


def finish(path: Path, metadata: ModelMetadata, shapes: dict[str, tuple[int | str, ...]]) -> None:
    """Writes the outputs' shapes (a string names a dynamic axis) and the metadata into the file.

    The tracer leaves sizes open that follow from the network; a runtime should not have to guess.
    """
    model = onnx.load(path)
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes[value.name], strict=True):
            dim.Clear()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    model.producer_name = "rfdetr-edge"
    model.producer_version = metadata.provenance.tool.rpartition(" ")[2]
    onnx.checker.check_model(model, full_check=True)
    _save(model, metadata, path)


def replace_metadata(path: Path, metadata: ModelMetadata) -> None:
    """Writes another document into a finished file."""
    _save(onnx.load(path), metadata, path)


def _save(model: onnx.ModelProto, metadata: ModelMetadata, path: Path) -> None:
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, path)
