"""The gate of engines: does an engine find what the ONNX file it was built of finds?

Both hold the same numbers, but add them up in another order: an FP32 engine must equal its ONNX
file, of lower precision the detections that a user would see must be the same. Knows nothing of
TensorRT.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from exporters.agreement import NOTHING_FOUND, agreement, detections
from exporters.calibration import calibration_set
from exporters.verify import compare, gate_images
from rfdetr_edge.backends import Session
from rfdetr_edge.backends.fake import FakeSession
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.metadata import ModelMetadata


def check_engine(onnx: Session, engine: Session, sizes: Iterable[int], images: Path | None) -> str:
    """Says what was compared. images: a folder, None for the embedded photos.

    sizes: the batches that the engine is run with, one after the other.
    Raises ArtifactError that says how it differs, and what the runtime raises.
    """
    metadata = Detector.from_session(onnx).metadata
    seen = [_check(onnx, _of_batch(engine, size), images, metadata) for size in sizes]
    return "; ".join(dict.fromkeys(seen))


def _of_batch(engine: Session, size: int) -> Session:
    """The engine as if its batch were fixed; one with an open batch runs in its range alone."""
    inputs, outputs = (
        tuple(replace(spec, shape=(size, *spec.shape[1:])) for spec in specs)
        for specs in (engine.inputs, engine.outputs)
    )
    return FakeSession(engine.run, inputs, outputs, engine.metadata_json, engine.provider)


def _check(onnx: Session, engine: Session, images: Path | None, metadata: ModelMetadata) -> str:
    paths = gate_images(images, metadata.task)
    if metadata.precision == "fp32":
        comparison = compare(onnx, engine, paths)
        passed, seen = comparison.passed, str(comparison)
    else:
        chosen = calibration_set(paths, limit=len(paths))
        found = [detections(session, chosen.pixels()) for session in (onnx, engine)]
        agreed = agreement(zip(*found, strict=True))
        passed, seen = agreed.close, str(agreed)
        if not agreed.says_something:
            raise ArtifactError(NOTHING_FOUND)
    if not passed:
        raise ArtifactError(seen)
    return seen
