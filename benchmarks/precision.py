"""What lower precision costs on BCCD: `python -m benchmarks.precision MODEL --bccd DIR`.

Scales come from training photos; AP is that of validation and test photos together, which took no
part in training or calibration. The model is tried as it is, with activation outliers as pretrained
encoders have them, and with channels beyond the range of half precision (benchmarks.outliers): the
same function each time. Beside ours stands onnxruntime's own static INT8 at its defaults. With
--onnx2tf-python each of these becomes a .tflite first, evened out as `rfdetr-edge export MODEL.onnx
--format tflite --precision int8` does it. A .tflite is tried as it is, and alone.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from benchmarks.outliers import injected
from benchmarks.stages import environment
from exporters.calibration import CalibrationSet, annotated_set, calibration_set
from exporters.onnx_graph import replace_metadata
from exporters.precision import export_fp16, export_int8, export_uncalibrated
from exporters.tflite.from_onnx import export_onnx_to_tflite
from exporters.tflite.onnx2tf import Onnx2tf, find_onnx2tf
from exporters.trials import Outcome, trial
from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.backends import open_session
from rfdetr_edge.datasets.coco import ANNOTATIONS
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.metadata import Uncalibrated

RESAMPLES = 1000  # as the gate's
SPLITS = ("valid", "test")
WEIGHTS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "as trained": lambda model: model,
    "outliers": injected,
    "beyond half": lambda model: injected(model, low=3000.0, high=10000.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Photos:
    """calibration: training photos. unseen: annotated ones of other splits."""

    calibration: CalibrationSet
    unseen: CalibrationSet


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Tensors as onnxruntime's quantiser asks for them."""

    def __init__(self, feed: str, tensors: Iterator[NDArray[np.float32]]) -> None:
        self._feed, self._tensors = feed, tensors

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next image, None after the last."""
        tensor = next(self._tensors, None)
        return None if tensor is None else {self._feed: tensor}


def plain_int8(source: Path, output: Path, photos: Photos) -> Outcome:
    """onnxruntime's static quantisation at its defaults, with the runtime's preprocessing."""
    with closing(open_session(source, provider="cpu")) as reference:
        metadata = Detector.from_session(reference).metadata
        tensors = photos.calibration.tensors(metadata.input)
        quantize_static(source, output, _Reader(next(iter(reference.inputs)).name, tensors))
        replace_metadata(output, metadata)
        with closing(open_session(output, provider="cpu")) as candidate:
            return trial(reference, photos.unseen).run(candidate, resamples=RESAMPLES)


def _fp16(source: Path, output: Path, photos: Photos) -> Outcome | None:
    return export_fp16(source, output, photos.unseen).outcome


def _int8(source: Path, output: Path, photos: Photos) -> Outcome | None:
    return export_int8(source, output, photos.calibration, photos.unseen).outcome


def _uncalibrated(
    source: Path, output: Path, photos: Photos, *, precision: Uncalibrated
) -> Outcome | None:
    """Judged on half of the unseen photos, since its layers are chosen on the other half."""
    return export_uncalibrated(source, output, photos.unseen, precision=precision).outcome


_Way = Callable[[Path, Path, Photos], Outcome | None]
WAYS: Mapping[str, _Way] = {
    "fp16": _fp16,
    "int8": _int8,
    **{name: partial(_uncalibrated, precision=name) for name in get_args(Uncalibrated)},
}
ONNX_WAYS: Mapping[str, _Way] = {**WAYS, "int8, onnxruntime's defaults": plain_int8}


def measure(
    model: Path, photos: Photos, onnx2tf: Onnx2tf | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each kind of weights and each way, as they come.

    onnx2tf: to try them as .tflite.
    """
    with tempfile.TemporaryDirectory() as folder:
        for weights, source in _sources(model, photos, onnx2tf, Path(folder)):
            output = Path(folder, f"output{source.suffix}")
            ways = ONNX_WAYS if source.suffix == ".onnx" else WAYS
            for name, way in ways.items():
                row = {"weights": weights, "precision": name}
                try:
                    outcome = way(source, output, photos)
                except ArtifactError as error:  # the gate's: what it says is the result
                    yield {**row, "refused": str(error)}
                    continue
                assert outcome is not None
                yield {
                    **row,
                    **_figures(outcome),
                    "size": output.stat().st_size / source.stat().st_size,
                }


def _sources(
    model: Path, photos: Photos, onnx2tf: Onnx2tf | None, folder: Path
) -> Iterator[tuple[str, Path]]:
    """The model with each kind of weights."""
    if model.suffix != ".onnx":
        yield "as trained", model
        return
    source = folder / "source.onnx"
    for weights, change in WEIGHTS.items():
        onnx.save(change(onnx.load(model)), source)
        if onnx2tf is None:
            yield weights, source
            continue
        converted = source.with_suffix(".tflite")
        ranging, _ = photos.calibration.split()
        export_onnx_to_tflite(source, converted, onnx2tf, images=None, calibration=ranging)
        yield weights, converted


def _figures(outcome: Outcome) -> dict[str, Any]:
    drop, agreed = outcome.drops["bbox"], outcome.agreement
    return {
        "ap_fp32": drop.reference,
        "ap": drop.candidate,
        "drop_points": drop.points,
        "drop_95": [drop.low, drop.high],
        "confident": agreed.wanted,
        "kept": agreed.wanted - agreed.lost,
        "invented": agreed.invented,
    }


def bccd_photos(folder: Path, scratch: Path) -> Photos:
    """The photos of a data set as `benchmarks.bccd` writes it.

    The unseen splits become one, whose annotation file is written into `scratch`.
    """
    merged: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for split in SPLITS:
        document = read_annotations(folder / split / ANNOTATIONS)
        first, rows = len(merged["images"]), merged["annotations"]
        ids = {image["id"]: first + place for place, image in enumerate(document["images"], 1)}
        merged["images"] += [
            {**image, "id": ids[image["id"]], "file_name": f"{split}/{image['file_name']}"}
            for image in document["images"]
        ]
        rows += [
            {**row, "id": place, "image_id": ids[row["image_id"]]}
            for place, row in enumerate(document["annotations"], len(rows) + 1)
        ]
        merged["categories"] = document["categories"]
    listing = scratch / ANNOTATIONS
    listing.write_text(json.dumps(merged), encoding="utf-8")
    return Photos(calibration_set(folder / "train"), annotated_set(listing, folder))


def main() -> None:
    """Measures, prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision")
    parser.add_argument("model", type=Path, help="FP32 artifact trained on BCCD")
    parser.add_argument("--bccd", type=Path, required=True, help="folder of train, valid and test")
    parser.add_argument("--onnx2tf-python", type=Path, help="try .tflite files, made with this")
    parser.add_argument("--json", type=Path, help="also write everything here")
    arguments = parser.parse_args()
    onnx2tf = None
    if arguments.onnx2tf_python is not None:
        if arguments.model.suffix != ".onnx":
            parser.error("--onnx2tf-python converts an .onnx; leave it out for a .tflite")
        onnx2tf = find_onnx2tf(arguments.onnx2tf_python)
    with tempfile.TemporaryDirectory() as scratch:
        photos = bccd_photos(arguments.bccd, Path(scratch))
        rows = []
        for row in measure(arguments.model, photos, onnx2tf):
            print(json.dumps(row), flush=True)
            rows.append(row)
    report = {
        "environment": {**environment(), "onnxruntime": ort.__version__},
        "model": arguments.model.name,
        "calibration_photos": len(photos.calibration),
        "photos": len(photos.unseen),
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
