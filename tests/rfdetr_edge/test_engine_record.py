"""The document beside an engine: written whole, read back equal, and named when it is damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rfdetr_edge.associated import sidecar_path
from rfdetr_edge.demo import model_path
from rfdetr_edge.detector import Detector
from rfdetr_edge.engine_record import EngineRecord, read_record, write_record
from rfdetr_edge.errors import ArtifactError, MetadataError
from rfdetr_edge.metadata import parse_metadata

_RECORD = EngineRecord(
    engine_sha256="ab" * 32,
    onnx_sha256="cd" * 32,
    family="tensorrt",
    version="10.3.0.30",
    cuda="12.6",
    driver="540.4.0",
    gpu="Orin",
    sm="87",
    requested="fp16",
    inspected={"Half": 410, "Float": 96},
    batch=(1, 2, 4),
    build_seconds=214.7,
    metadata=None,
)
_PORTABLE = replace(
    _RECORD, family="tensorrt-rtx", cuda=None, driver=None, gpu=None, sm=None, inspected=None
)


@pytest.mark.parametrize("record", [_RECORD, _PORTABLE])
def test_what_was_written_is_read_back(record: EngineRecord, tmp_path: Path) -> None:
    engine = tmp_path / "nano.fp16.engine"
    write_record(engine, record)
    assert sidecar_path(engine) == tmp_path / "nano.fp16.engine.json"
    assert read_record(engine) == record
    assert [path.name for path in tmp_path.iterdir()] == ["nano.fp16.engine.json"]


def test_the_metadata_of_the_artifact_travels_along(tmp_path: Path) -> None:
    with Detector(model_path()) as detector:
        metadata = detector.metadata
    write_record(tmp_path / "m.engine", replace(_RECORD, metadata=metadata.to_json()))
    said = read_record(tmp_path / "m.engine").metadata
    assert said is not None
    assert parse_metadata(said) == metadata


def test_an_engine_without_its_document_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"m\.engine\.json is missing.* --format engine"):
        read_record(tmp_path / "m.engine")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff\xfe"])
def test_a_document_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    sidecar_path(tmp_path / "m.engine").write_bytes(text.encode("latin-1"))
    with pytest.raises(MetadataError, match=r"m\.engine\.json .*build the engine again"):
        read_record(tmp_path / "m.engine")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", None),
        ("schema", True),
        ("engine_sha256", None),
        ("engine_sha256", ""),
        ("family", "tensorrt-lite"),
        ("version", 10.3),
        ("sm", 87),
        ("requested", "bf16"),
        ("inspected", ["Half"]),
        ("inspected", {"Half": "410"}),
        ("batch", None),
        ("batch", [1, 4]),
        ("batch", [0, 1, 4]),
        ("batch", [1, 8, 4]),
        ("build_seconds", "214 s"),
        ("metadata", "text"),
    ],
)
def test_a_damaged_field_is_named(field: str, value: object, tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    write_record(engine, _RECORD)
    document = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps(document | {field: value}))
    with pytest.raises(MetadataError, match=f"'{field}' of .*build the engine again"):
        read_record(engine)


def test_a_newer_schema_asks_for_an_update(tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    write_record(engine, _RECORD)
    document = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps(document | {"schema": 2}))
    with pytest.raises(MetadataError, match="update rfdetr-edge"):
        read_record(engine)
