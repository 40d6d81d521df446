"""What the command line shows, as text; printing it is left to `cli`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfdetr_edge.backends import BACKENDS, TensorSpec, open_session
from rfdetr_edge.detections import Detections
from rfdetr_edge.engine_record import check_bytes, read_record
from rfdetr_edge.files import file_sha256
from rfdetr_edge.metadata import parse_metadata
from rfdetr_edge.pipeline import Tally
from rfdetr_edge.sources import Frame

if TYPE_CHECKING:  # both load what most commands do without
    from rfdetr_edge.doctor import Finding
    from rfdetr_edge.evaluation import AveragePrecision, Kind
    from rfdetr_edge.f1 import F1Sweep

_PREFIXES: Mapping["Kind", str] = {"bbox": "", "segm": "mask ", "keypoints": "keypoint "}
_SURE = 0.5  # points of more confidence are counted


def frame_table(frame: Frame, detections: Detections) -> str:
    """A line on the frame and one on each detection."""
    height, width = detections.source_size
    place = "" if frame.time is None else f"  frame {frame.index}  {frame.time:.2f} s"
    lines = [f"{frame.name}{place}  {width}x{height}  {_count(len(detections), 'detection')}"]
    names = [name or f"class {slot}" for name, slot in _names(detections)]
    column = max(map(len, names), default=0)
    columns = (names, detections.confidence, detections.xyxy, _extents(detections))
    for name, confidence, xyxy, extent in zip(*columns, strict=True):
        corners = " ".join(f"{value:7.1f}" for value in xyxy)
        lines.append(f"  {name:<{column}}  {confidence:.2f}  {corners}{extent}")
    return "\n".join(lines)


def tally_line(tally: Tally) -> str:
    """One line on the whole run."""
    line = f"{_count(tally.frames, 'frame')}, {_count(tally.detections, 'detection')}"
    return line + (f"; {_count(tally.failed, 'input')} not read in full" if tally.failed else "")


def precision_table(results: Mapping["Kind", "AveragePrecision"], sweep: "F1Sweep") -> str:
    """The summary, AP by class, and the threshold with the best F1; all from 0 to 1.

    results: "bbox", and after it what else was evaluated.
    """
    rows = [row for kind, result in results.items() for row in _precision_rows(kind, result)]
    rows += [
        ("best threshold", sweep.threshold),
        ("F1", sweep.f1),
        ("precision", sweep.precision),
        ("recall", sweep.recall),
    ]
    column = max(len(name) for name, _ in rows)
    lines = [f"{name:<{column}}  {'-' if math.isnan(v) else f'{v:.4f}'}" for name, v in rows]
    return "\n".join([_count(results["bbox"].images, "image"), *lines])


def precision_json(results: Mapping["Kind", "AveragePrecision"], sweep: "F1Sweep") -> str:
    """The same as a JSON object; null where there is nothing to find.

    Boxes are at its top, the others under their kind.
    """
    boxes, *others = ((kind, asdict(result)) for kind, result in results.items())
    document = {**boxes[1], **dict(others), "best_threshold": asdict(sweep)}
    return json.dumps(_without_nan(document), allow_nan=False)


def describe_artifact(path: Path) -> dict[str, Any]:
    """What `info --json` prints: file, bytes, sha256, provider, inputs, outputs, metadata.

    metadata: the artifact's own document, None without one. An engine is not loaded, so that this
    needs neither a GPU nor TensorRT: inputs and outputs are None, and "engine" has what its record
    says beside. Raises MetadataError for a document that cannot be read, ArtifactError for an
    engine that is not that of its record, and whatever loading another artifact raises.
    """
    if path.suffix.lower() == BACKENDS["tensorrt"].suffix:
        return _describe_engine(path)
    session = open_session(path)
    try:
        return {
            **_file(path),
            "provider": session.provider,
            "inputs": [_tensor(spec) for spec in session.inputs],
            "outputs": [_tensor(spec) for spec in session.outputs],
            "metadata": _document(session.metadata_json),
        }
    finally:
        session.close()


def _describe_engine(path: Path) -> dict[str, Any]:
    record, file = read_record(path), _file(path)
    check_bytes(path, record, file["sha256"])
    said = asdict(record)
    document = _document(said.pop("metadata"))
    del said["engine_sha256"]
    return {
        **file,
        "provider": record.family,
        "inputs": None,
        "outputs": None,
        "engine": said,
        "metadata": document,
    }


def _file(path: Path) -> dict[str, Any]:
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _document(text: str | None) -> Any:
    return None if text is None else json.loads(parse_metadata(text).to_json())


def artifact_text(description: dict[str, Any]) -> str:
    """The same description for people."""
    rows = [
        ("file", f"{description['file']} ({description['bytes'] / 1e6:.1f} MB)"),
        ("sha256", description["sha256"]),
        ("provider", description["provider"]),
        *(("input", _tensor_text(tensor)) for tensor in description["inputs"] or ()),
        *(("output", _tensor_text(tensor)) for tensor in description["outputs"] or ()),
        *_engine_rows(description.get("engine", {})),
    ]
    document = description["metadata"]
    if document is None:
        rows.append(("metadata", "none: name the classes with --class-layout to run it"))
    else:
        rows += _metadata_rows(document)
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


def findings_text(findings: Sequence["Finding"]) -> str:
    """The doctor's report: a line on each finding, and one on what mends it."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<6}  {finding.subject}: {finding.detail}")
        if finding.fix:
            lines.append(f"{'':<6}  -> {finding.fix}")
    wrong = sum(finding.level == "wrong" for finding in findings)
    lines.append(f"{_count(wrong, 'problem')} found" if wrong else "all is well")
    return "\n".join(lines)


def _engine_rows(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the record of an engine says; nothing for another artifact."""
    if not said:
        return []
    target = "any GPU" if said["sm"] is None else f"sm_{said['sm']} ({said['gpu'] or 'unnamed'})"
    built = f"{said['family']} {said['version']}" + "".join(
        f", {name} {said[key]}"
        for name, key in (("CUDA", "cuda"), ("driver", "driver"))
        if said[key]
    )
    layers = said["inspected"] or {}
    counts = ", ".join(f"{count} {kind}" for kind, count in layers.items())
    smallest, best, largest = said["batch"]
    took = "" if said["build_seconds"] is None else f" in {said['build_seconds']:.0f} s"
    return [
        ("runs on", f"{target} with {built}"),
        ("batch", f"{best}" if smallest == largest else f"{smallest} to {largest}, best {best}"),
        ("precision", f"{said['requested']} asked for; layers: {counts or 'not inspected'}"),
        ("built", f"of ONNX {said['onnx_sha256']}{took}"),
    ]


def _metadata_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    source, classes, provenance = (document[key] for key in ("input", "classes", "provenance"))
    height, width = source["resolution"]
    names = [f"{slot['id']} {slot['name']}" for slot in classes["slots"] if slot["name"]]
    rows = [
        ("variant", f"{document['variant']}, {document['task']}, {document['precision']}"),
        ("resolution", f"{width}x{height} (width x height)"),
        ("resize", f"{source['resize']}, {'with' if source['antialias'] else 'no'} antialias"),
        ("num_select", str(document["num_select"])),
        ("classes", f"{classes['layout']}: {', '.join(names)}"),
        ("checkpoint", provenance["checkpoint_sha256"]),
        ("exported by", f"{provenance['tool']}, verification {provenance['verification']}"),
    ]
    rows += _task_rows(document)
    return rows if provenance["notes"] is None else [*rows, ("notes", str(provenance["notes"]))]


def _task_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The mask grid, or the points of every class that has some."""
    if (stride := document.get("mask_stride")) is not None:
        return [("mask stride", f"{stride} pixels of the input")]
    if (schema := document.get("keypoints")) is None:
        return []
    slots = zip(document["classes"]["slots"], schema["classes"], strict=False)
    rows = [
        (
            "keypoints",
            f"{slot['id']} {slot['name']}: {', '.join(points['names'])}; "
            f"skeleton of {_count(len(points['skeleton']), 'line')}",
        )
        for slot, points in slots
        if points["names"]
    ]
    return [*rows, ("trace_alpha", str(schema["trace_alpha"]))]


def _precision_rows(kind: "Kind", result: "AveragePrecision") -> list[tuple[str, float]]:
    rows = [
        ("AP 50:95", result.ap),
        ("AP 50", result.ap50),
        ("AP 75", result.ap75),
        ("AR", result.ar),
        *((f"AP {name}", value) for name, value in result.per_class.items()),
    ]
    return [(_PREFIXES[kind] + name, value) for name, value in rows]


def _extents(detections: Detections) -> list[str]:
    """What a line says of a detection's mask, its pixels, or of its points: how many are sure."""
    if detections.masks is not None:
        return [f"  {area:8d} px" for area in detections.masks.areas()]
    if detections.keypoint_confidence is None:
        return [""] * len(detections)
    sure = (detections.keypoint_confidence > _SURE).sum(axis=1).tolist()
    return [
        f"  {number:2d}/{count} points" if count else ""
        for number, count in zip(sure, detections.keypoint_count.tolist(), strict=True)
    ]


def _names(detections: Detections) -> list[tuple[str, int]]:
    return list(zip(detections.class_name.tolist(), detections.class_id.tolist(), strict=True))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": str(spec.dtype)}


def _tensor_text(tensor: dict[str, Any]) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in tensor["shape"])
    return f"{tensor['name']} {tensor['dtype']} ({sizes})"
