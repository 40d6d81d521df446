"""An engine of an artifact, with its record beside it: looked at, built, compared, handed out."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from exporters.calibration import calibration_set
from exporters.inspection import inspected
from exporters.trt.build import Built, adopt, build
from exporters.trt.device import Device, device
from exporters.trt.dialect import Installed
from exporters.trt.gate import check_engine
from exporters.trt.options import Batch, EngineOptions
from exporters.trt.preflight import preflight
from exporters.verify import gate_images, reject, rejected_path
from rfdetr_edge.associated import sidecar_path
from rfdetr_edge.backends import open_session
from rfdetr_edge.engine_record import EngineRecord, write_record
from rfdetr_edge.errors import ArtifactError, BackendError, BackendUnavailable
from rfdetr_edge.files import file_sha256, replacing
from rfdetr_edge.metadata import (
    METADATA_KEY,
    ModelMetadata,
    Precision,
    Verification,
    parse_metadata,
)

# Images that a graph in half precision is run on, to see what overflows.
_MOST_IMAGES = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """An ONNX file to build an engine of.

    metadata: None for one that is not ours. precision: what its graph holds, whatever it says.
    image: name and shape of its first input, -1 where that is open.
    """

    path: Path
    model: onnx.ModelProto
    metadata: ModelMetadata | None
    precision: Precision

    @property
    def image(self) -> tuple[str, tuple[int, ...]]:
        """As TensorRT will have it."""
        value = self.model.graph.input[0]
        sizes = value.type.tensor_type.shape.dim
        return value.name, tuple(size.dim_value or -1 for size in sizes)

    @property
    def batch(self) -> int:
        """Images of one run, -1 where any number will do."""
        _, shape = self.image
        return shape[0] if shape else -1


def read_source(path: Path) -> Source:
    """Raises ArtifactError for a file that is no ONNX, MetadataError for damaged metadata."""
    try:
        model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read as ONNX ({error}); export or copy it again"
        ) from None
    if not model.graph.node or not model.graph.input:
        raise ArtifactError(f"{path} is no ONNX file with a network in it; export or copy it again")
    props = {prop.key: prop.value for prop in model.metadata_props}
    metadata = parse_metadata(props[METADATA_KEY]) if METADATA_KEY in props else None
    return Source(path, model, metadata, inspected(model).precision)


def look(
    source: Source, precision: Precision, images: Path | None = None, *, verified: bool = True
) -> None:
    """Raises ArtifactError where no engine of this precision should be built; logs the rest.

    images: a folder of images to look for overflows on, None for the embedded photos.
    verified: run half precision on them. Raises BackendUnavailable where ONNX Runtime, which does
        that, is not installed.
    """
    run = verified and precision == "fp16" and source.metadata is not None
    if run:
        _check_reference()
    findings = preflight(source.model, precision, _tensors(source, images) if run else ())
    errors = [finding.text for finding in findings if finding.is_error]
    said = source.metadata.precision if source.metadata else precision
    if said != source.precision:
        errors.append(f"its metadata says {said}, its graph holds {source.precision}")
    if errors:
        raise ArtifactError(
            "\n  ".join([f"no {precision} engine can be built of {source.path}:", *errors])
        )
    for finding in findings:
        logger.warning("%s: %s", source.path, finding.text)


def export_engine(
    source: Source,
    output: Path,
    tensorrt: Installed,
    precision: Precision,
    options: EngineOptions,
    *,
    images: Path | None = None,
    verified: bool = True,
) -> str:
    """Builds an engine and says how it went.

    images: a folder for the gate, None for the embedded photos. verified: compare the engine with
        its source, where there is a GPU to run it and the source is an artifact of ours. Only then
        does the metadata of the record say so.
    Raises what `look` and `build` raise, and ArtifactError for an engine that does not run or does
    not find what its source finds: it is then kept as `<output>.rejected`, with its record, for
    inspection. In any case `output` is then not touched.
    """
    look(source, precision, images, verified=verified)
    here = device()
    if here is not None and verified and source.metadata is not None:
        _check_reference()  # before the build, which takes its time
    built = build(tensorrt, source.path, precision, options, has_gpu=here is not None)
    return _hand_out(source, output, tensorrt, precision, built, here, images, verified)


def adopt_engine(
    source: Source,
    output: Path,
    tensorrt: Installed,
    precision: Precision,
    options: EngineOptions,
    *,
    images: Path | None = None,
    verified: bool = True,
) -> str:
    """Gives an engine that trtexec built of the source its record, and says how it went.

    output: the engine. The rest, and errors: as `export_engine`; BackendError without a GPU.
    """
    look(source, precision, images, verified=verified)
    here = device()
    if here is None:
        raise BackendError(
            f"{output} can be looked into where it will run, and there is no GPU here; run the "
            "same command there"
        )
    if verified and source.metadata is not None:
        _check_reference()
    built = adopt(tensorrt, source.path, output.read_bytes(), precision, options)
    return _hand_out(source, output, tensorrt, precision, built, here, images, verified)


def _hand_out(
    source: Source,
    output: Path,
    tensorrt: Installed,
    precision: Precision,
    built: Built,
    here: Device | None,
    images: Path | None,
    verified: bool,
) -> str:
    with replacing(output) as temporary, _without_record(temporary):
        temporary.write_bytes(memoryview(built.plan))
        record = _record(source, temporary, tensorrt, precision, built, here)
        seen = f"built but not run{'' if here else ': there is no GPU here'}"
        if here is not None and verified and source.metadata is not None:
            write_record(temporary, record)
            try:
                seen = _compare(source, temporary, built.batch, images)
            except BackendUnavailable:  # nothing is wrong with the engine
                raise
            except (ArtifactError, BackendError) as error:
                write_record(rejected_path(output), record)
                raise reject(temporary, output, error) from error
            record = replace(record, metadata=_verified(source.metadata, "passed"))
        write_record(output, record)
    sizes = "-".join(map(str, dict.fromkeys(built.batch)))
    took = "" if built.seconds is None else f" in {built.seconds:.0f} s"
    size = output.stat().st_size / 1e6
    return f"{precision}, batch {sizes}, {size:.1f} MB by {tensorrt}{took}; {seen}"


def _check_reference() -> None:
    if find_spec("onnxruntime") is None:
        raise BackendUnavailable(
            "the ONNX file is run by ONNX Runtime, which is not installed: pip install "
            "onnxruntime (--no-deps on a Jetson, which keeps JetPack's NumPy), or say --no-verify "
            "for an engine that was compared with nothing"
        )


def _tensors(source: Source, images: Path | None) -> Iterator[NDArray[np.float32]]:
    """Images as the artifact takes them; none for one that does not say how."""
    if source.metadata is not None:
        chosen = gate_images(images, source.metadata.task)
        spec = source.metadata.input
        yield from islice(calibration_set(chosen).tensors(spec), _MOST_IMAGES)


def _record(
    source: Source,
    engine: Path,
    tensorrt: Installed,
    precision: Precision,
    built: Built,
    here: Device | None,
) -> EngineRecord:
    return EngineRecord(
        engine_sha256=file_sha256(engine),
        onnx_sha256=file_sha256(source.path),
        family=tensorrt.dialect.family,
        version=tensorrt.version,
        cuda=here.cuda if here else None,
        driver=here.driver if here else None,
        gpu=here.gpu if here else None,
        sm=here.sm if here and tensorrt.dialect.needs_gpu else None,
        requested=precision,
        inspected=built.layers,
        batch=built.batch,
        build_seconds=None if built.seconds is None else round(built.seconds, 1),
        metadata=_verified(source.metadata, "skipped") if source.metadata else None,
    )


def _verified(metadata: ModelMetadata, verification: Verification) -> str:
    provenance = replace(metadata.provenance, verification=verification)
    return replace(metadata, provenance=provenance).to_json()


def _compare(source: Source, engine: Path, batch: Batch, images: Path | None) -> str:
    reference = open_session(source.path, provider="cpu")
    try:
        candidate = open_session(engine)
        try:
            return check_engine(reference, candidate, sorted({batch[0], batch[2]}), images)
        finally:
            candidate.close()
    finally:
        reference.close()


@contextmanager
def _without_record(engine: Path) -> Iterator[None]:
    """Removes the record of an engine that is about to get another name."""
    try:
        yield
    finally:
        sidecar_path(engine).unlink(missing_ok=True)
