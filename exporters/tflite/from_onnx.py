"""FP32 ONNX artifact to an FP32 `.tflite` by onnx2tf, compared with the artifact on the spot.

Input `input` (1, H, W, 3), normalised float32; outputs under the names and in the order of the ONNX
artifact. Knows nothing of torch.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import onnx

from exporters.calibration import CalibrationSet
from exporters.onnx_precision.int8 import evened
from exporters.tflite.form import tflite_form
from exporters.tflite.gate import hand_out
from exporters.tflite.onnx2tf import Onnx2tf, converted
from exporters.tflite.signature import signed
from exporters.verify import Comparison
from rfdetr_edge.backends import open_session
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import ArtifactError


def export_onnx_to_tflite(
    source: Path,
    output: Path,
    onnx2tf: Onnx2tf,
    *,
    images: Sequence[Path] | None,
    calibration: CalibrationSet | None = None,
) -> dict[str, Comparison]:
    """Writes the artifact and its sidecar, and compares it with its source on `images`.

    source: an FP32 artifact of ours for one image a run.
    calibration: where int8 is to follow. Channels that are larger than the others on these images
        are evened out first, since TFLite has one scale for all of a tensor.
    images, what is returned and what is raised for a file that differs: see `hand_out`.
    Raises ArtifactError for a source that is no such artifact, and when the converter fails.
    """
    with closing(open_session(source, provider="cpu")) as reference:
        if reference.metadata_json is None:
            raise ArtifactError(f"{source} has no metadata of rfdetr-edge; export its checkpoint")
        metadata = Detector.from_session(reference).metadata
        if metadata.precision != "fp32":
            raise ArtifactError(
                f"{source} is {metadata.precision}; a .tflite is made of the fp32 artifact"
            )
        graph = onnx.load(source)
        if calibration is not None:
            graph = evened(graph, calibration, metadata.input)
        model = tflite_form(graph)
        shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:]
            for value in model.graph.output
        }
        provenance = replace(metadata.provenance, converter=str(onnx2tf))
        return hand_out(
            lambda: signed(converted(model, onnx2tf), [*shapes]),
            output,
            replace(metadata, provenance=provenance),
            shapes,
            reference,
            images,
        )
