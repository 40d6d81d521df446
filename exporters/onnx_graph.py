"""Finishing an ONNX file: the shapes of its outputs and the metadata inside."""

import json
from pathlib import Path
from typing import Any

import onnx

from rfdetr_edge.metadata import METADATA_KEY, ModelMetadata

BATCH_AXIS = "batch"
NOTES_KEY = "rfdetr_notes"


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


def with_metadata(content: bytes, metadata: ModelMetadata) -> bytes:
    """The same of a graph that is no file."""
    model = onnx.load_from_string(content)
    _set(model, metadata)
    changed: bytes = model.SerializeToString()
    return changed


def add_notes(path: Path, notes: Any) -> None:
    """Writes the notes alone, as `rfdetr_notes`."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, _notes(notes))
    onnx.save(model, path)


def _save(model: onnx.ModelProto, metadata: ModelMetadata, path: Path) -> None:
    _set(model, metadata)
    onnx.save(model, path)


def _set(model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    notes = _notes(metadata.provenance.notes)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json(), **notes})


def _notes(notes: Any) -> dict[str, str]:
    """As upstream has them: text as it is, other values as JSON, nothing for None."""
    if notes is None:
        return {}
    return {NOTES_KEY: notes if isinstance(notes, str) else json.dumps(notes, allow_nan=False)}
