"""An engine of an artifact, with its record beside it: built or adopted, compared, handed out."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from exporters.trt.build import Built, adopt, build
from exporters.trt.device import Device, device
from exporters.trt.dialect import Installed
from exporters.trt.gate import check_engine
from exporters.trt.options import EngineOptions
from exporters.trt.source import Source, check_reference, look
from exporters.verify import reject, rejected_path
from rfdetr_edge.associated import sidecar_path
from rfdetr_edge.backends import open_session
from rfdetr_edge.cuda.choice import open_cuda
from rfdetr_edge.engine_record import EngineRecord, write_record
from rfdetr_edge.errors import ArtifactError, BackendError, BackendUnavailable
from rfdetr_edge.files import file_sha256, replacing
from rfdetr_edge.metadata import ModelMetadata, Precision, Verification


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
    if here is not None:
        _check_comparable(source, verified)
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
    _check_comparable(source, verified)
    built = adopt(tensorrt, source.path, output.read_bytes(), precision, options)
    return _hand_out(source, output, tensorrt, precision, built, here, images, verified)


def _check_comparable(source: Source, verified: bool) -> None:
    """Raises BackendUnavailable for what comparing will lack: before a build, which takes time."""
    if verified and source.metadata is not None:
        check_reference()
        open_cuda().close()


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
            seen = _compared(source, temporary, output, record, images)
            record = replace(record, metadata=_verified(source.metadata, "passed"))
        write_record(output, record)
    sizes = "-".join(map(str, dict.fromkeys(built.batch)))
    took = "" if built.seconds is None else f" in {built.seconds:.0f} s"
    size = output.stat().st_size / 1e6
    return f"{precision}, batch {sizes}, {size:.1f} MB by {tensorrt}{took}; {seen}"


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


def _compared(
    source: Source, engine: Path, output: Path, record: EngineRecord, images: Path | None
) -> str:
    """Says what was seen. engine: what `output` is to become; what is refused is kept beside it."""
    smallest, _, largest = record.batch
    with closing(open_session(source.path, provider="cpu")) as reference:
        try:
            with closing(open_session(engine)) as candidate:
                return check_engine(reference, candidate, sorted({smallest, largest}), images)
        except BackendUnavailable:  # nothing is wrong with the engine
            raise
        except (ArtifactError, BackendError) as error:
            write_record(rejected_path(output), record)
            raise reject(engine, output, error) from error


@contextmanager
def _without_record(engine: Path) -> Iterator[None]:
    """Removes the record of an engine that is about to get another name."""
    try:
        yield
    finally:
        sidecar_path(engine).unlink(missing_ok=True)
