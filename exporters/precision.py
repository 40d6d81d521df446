"""From an FP32 artifact to FP16 and INT8, handed out only when the gate lets the result pass.

The same for every format: what differs is an `exporters.formats.Lowering` and a `Format`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from exporters.calibration import CalibrationSet
from exporters.formats import Lowering, Target, default_max_drop, format_of, lowering_of
from exporters.lossy import Judgement, judge
from exporters.observers import Kind
from exporters.report import write_report
from exporters.sensitivity import Row, search
from exporters.trials import Trial, trial
from exporters.verify import rejected_path
from rfdetr_edge.associated import write_sidecar
from rfdetr_edge.backends import Session, open_session, proving_providers
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.files import replacing
from rfdetr_edge.metadata import Calibration, ModelMetadata, Uncalibrated


def export_fp16(
    source: Path, output: Path, images: CalibrationSet, *, max_drop: float | None = None
) -> Judgement:
    """Writes an FP32 artifact in half precision, its inputs and outputs in float32.

    source, output: of the same format. images: the gate's; what overflows on them stays in float32.
    max_drop: as `lossy.judge` has it.
    Beside it goes the report (exporters.report): `<output>.report.html` and `.report.json`.
    Raises InputError for a source that is no FP32 artifact of ours, ModuleNotFoundError without the
    library that lowers it, ArtifactError when the gate refuses: the artifact is then kept as
    `<output>.rejected`, and `output` is not touched.
    """
    lowering = _lowering(source, output)
    with _opened(source) as (session, metadata):
        against = trial(session, images)
    model, counts = lowering.half(source, images.tensors(metadata.input))
    said = replace(metadata, precision="fp16")
    return _hand_out(model, said, source, output, against, max_drop, counts=counts)


def export_int8(
    source: Path,
    output: Path,
    calibration: CalibrationSet,
    images: CalibrationSet,
    *,
    target: Target = "cpu",
    observer: Kind = "minmax",
    max_drop: float | None = None,
) -> Judgement:
    """Writes an FP32 artifact in calibrated INT8.

    calibration: half of it sets the ranges, on the other half is searched for layers that must stay
    in float. images: the gate's, others than these. The rest, and errors: as `export_fp16`.
    """
    lowering = _lowering(source, output)
    ranging, searching = calibration.split()
    with _opened(source) as (session, metadata):
        against, explored = trial(session, images), trial(session, searching)
    choices = lowering.calibrated(source, ranging, metadata.input, observer, target)
    allowed = default_max_drop(output, "int8") if max_drop is None else max_drop
    found = search(choices, explored, allowed)
    origin = replace(
        metadata.provenance, calibration=Calibration(len(calibration), calibration.digest)
    )
    said = replace(metadata, precision="int8", provenance=origin)
    return _hand_out(found.model, said, source, output, against, max_drop, rows=found.rows)


def export_uncalibrated(
    source: Path,
    output: Path,
    images: CalibrationSet,
    *,
    precision: Uncalibrated,
    max_drop: float | None = None,
) -> Judgement:
    """Writes an FP32 artifact in INT8 whose scales need no images.

    images: half of them are the gate's, on the other half is searched for layers that must stay in
    float. The rest, and errors: as `export_fp16`, and InputError for fewer than two images.
    """
    lowering = _lowering(source, output)
    judging, searching = images.split()
    with _opened(source) as (session, metadata):
        against, explored = trial(session, judging), trial(session, searching)
    allowed = default_max_drop(output, precision) if max_drop is None else max_drop
    found = search(lowering.uncalibrated(source, precision), explored, allowed)
    said = replace(metadata, precision=precision)
    return _hand_out(found.model, said, source, output, against, max_drop, rows=found.rows)


def _lowering(source: Path, output: Path) -> Lowering:
    if output.suffix.lower() != source.suffix.lower():
        raise InputError(f"{output.name!r} must end in {source.suffix}, as what it is made of")
    return lowering_of(source)


@contextmanager
def _opened(source: Path) -> Iterator[tuple[Session, ModelMetadata]]:
    """An FP32 artifact of ours and what it says of itself."""
    session = open_session(source, provider=proving_providers(source)[0])
    try:
        if session.metadata_json is None:
            raise InputError(
                f"{source} does not say what it is; export the checkpoint with rfdetr-edge first"
            )
        metadata = Detector.from_session(session).metadata
        if metadata.precision != "fp32":
            raise InputError(
                f"{source} is {metadata.precision} already; give the FP32 artifact it was made from"
            )
        yield session, metadata
    finally:
        session.close()


def _hand_out(
    model: bytes,
    metadata: ModelMetadata,
    source: Path,
    output: Path,
    against: Trial,
    max_drop: float | None,
    *,
    counts: Mapping[str, int] | None = None,
    rows: Sequence[Row] = (),
) -> Judgement:
    """Writes the artifact if the gate lets it pass, and the report in any case."""
    kind = format_of(output)
    assert kind is not None  # that of the source
    with replacing(output) as temporary:
        skipped = replace(metadata.provenance, verification="skipped")
        temporary.write_bytes(kind.with_metadata(model, replace(metadata, provenance=skipped)))
        judgement = judge(metadata, temporary, against, max_drop)
        target = output.resolve() if judgement.passed else rejected_path(output)
        write_report(target, source, temporary, metadata, against, judgement, counts or {}, rows)
        if not judgement.passed:
            temporary.replace(target)
            raise ArtifactError(f"the artifact is refused and kept as {target}: {judgement}")
        # only now, so that no file that was not compared says so
        passed = replace(metadata, provenance=replace(metadata.provenance, verification="passed"))
        temporary.write_bytes(kind.with_metadata(model, passed))
        if kind.sidecar:
            write_sidecar(output, passed.to_json())
    return judgement
