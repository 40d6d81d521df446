"""What lies beside an engine: `<engine>.json`, from what it was built, with what, and for what.

An engine runs only where it fits: with the TensorRT that built it, on the GPU it was built for.
Deserialising one that does not fit fails with a number, or takes the process down; this document
tells beforehand. It also carries the artifact's own metadata, for which an engine has no place.

    {"schema": 1, "engine_sha256": "...", "onnx_sha256": "...",
     "family": "tensorrt", "version": "10.3.0.30", "cuda": "12.6", "driver": "540.4.0",
     "gpu": "Orin", "sm": "87", "requested": "fp16", "inspected": {"Half": 410, "Float": 96},
     "batch": [1, 1, 4], "build_seconds": 214.7, "metadata": {"schema": 1, "task": ...}}

Knows neither TensorRT nor CUDA.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from rfdetr_edge.associated import sidecar_path, write_sidecar
from rfdetr_edge.errors import ArtifactError, MetadataError
from rfdetr_edge.metadata import Precision

Family = Literal["tensorrt", "tensorrt-rtx"]
"""Kinds of TensorRT that cannot run each other's engines."""
MODULES: Mapping[Family, str] = MappingProxyType(
    {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
)
"""The Python module of each."""

_SCHEMA = 1
_REMEDY = "build the engine again: rfdetr-edge export MODEL.onnx --format engine"


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The whole document.

    engine_sha256, onnx_sha256: of the files' bytes, as hexadecimal text.
    version: of TensorRT, in full ("10.3.0.30").
    cuda, driver, gpu: of the machine that built it ("12.6", "540.4.0", "Orin"); None without a GPU.
    sm: compute capability of that GPU without its dot ("87"); None for an engine built without a
        GPU, which TensorRT-RTX fits to one when it loads it.
    requested: the precision asked for. inspected: data type -> layers that give it, as the engine
        inspector of TensorRT says; None where there was no GPU to load the engine.
    batch: smallest, best and largest number of images of a run; equal for a fixed one.
    build_seconds: None for an engine that trtexec built.
    metadata: JSON text of `ModelMetadata`, None for an engine of a foreign ONNX file.
    """

    engine_sha256: str
    onnx_sha256: str
    family: Family
    version: str
    cuda: str | None
    driver: str | None
    gpu: str | None
    sm: str | None
    requested: Precision
    inspected: Mapping[str, int] | None
    batch: tuple[int, int, int]
    build_seconds: float | None
    metadata: str | None


def write_record(engine: Path, record: EngineRecord) -> None:
    """Writes the document beside the engine, whole or not at all."""
    document = {"schema": _SCHEMA, **asdict(record)}
    if record.metadata is not None:
        document["metadata"] = json.loads(record.metadata)
    write_sidecar(engine, json.dumps(document, indent=1, allow_nan=False))


def read_record(engine: Path) -> EngineRecord:
    """Reads and checks the document beside an engine; not whether the engine is the one it names.

    Raises ArtifactError where there is none, MetadataError that names the field for one that is
    damaged or of a newer schema.
    """
    path = sidecar_path(engine)
    if not path.is_file():
        raise ArtifactError(
            f"{path} is missing, which says what {engine.name} was built for; copy it along with "
            f"the engine, {_REMEDY}, or add --adopt to that for an engine that trtexec built"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of text that is no UTF-8 or no JSON
        raise MetadataError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    if not isinstance(document, dict):
        raise MetadataError(f"{path} holds no JSON object; {_REMEDY}")
    return _Fields(path, document).record()


def check_bytes(engine: Path, record: EngineRecord, sha256: str) -> None:
    """sha256: of the engine's bytes. Raises ArtifactError unless the record is of these."""
    if sha256 != record.engine_sha256:
        raise ArtifactError(
            f"{engine} is not the engine that its .json describes, or was damaged on the way; copy "
            "both again, or build it again with rfdetr-edge export"
        )


@dataclass(frozen=True, slots=True)
class _Fields:
    """The document as it was read, with the path for what is wrong in it."""

    path: Path
    document: Mapping[str, Any]

    def record(self) -> EngineRecord:
        schema = self._number("schema", int)
        if schema > _SCHEMA:
            raise MetadataError(
                f"{self.path} has schema {schema}, this rfdetr-edge reads up to {_SCHEMA}; update "
                f"rfdetr-edge, or {_REMEDY}"
            )
        metadata = self.document.get("metadata")
        self._check("metadata", metadata is None or isinstance(metadata, dict))
        return EngineRecord(
            engine_sha256=self._text("engine_sha256"),
            onnx_sha256=self._text("onnx_sha256"),
            family=self._choice("family", get_args(Family)),
            version=self._text("version"),
            cuda=self._text_or_none("cuda"),
            driver=self._text_or_none("driver"),
            gpu=self._text_or_none("gpu"),
            sm=self._text_or_none("sm"),
            requested=self._choice("requested", get_args(Precision)),
            inspected=self._inspected(),
            batch=self._batch(),
            build_seconds=self._seconds(),
            metadata=None if metadata is None else json.dumps(metadata),
        )

    def _inspected(self) -> Mapping[str, int] | None:
        found = self.document.get("inspected")
        if found is None:
            return None
        self._check(
            "inspected",
            isinstance(found, dict) and all(type(count) is int for count in found.values()),
        )
        return dict(found)

    def _batch(self) -> tuple[int, int, int]:
        sizes = self.document.get("batch")
        self._check(
            "batch",
            isinstance(sizes, list)
            and len(sizes) == 3
            and all(type(size) is int and size > 0 for size in sizes)
            and sizes == sorted(sizes),
        )
        smallest, best, largest = self.document["batch"]
        return smallest, best, largest

    def _seconds(self) -> float | None:
        if self.document.get("build_seconds") is None:
            return None
        return float(self._number("build_seconds", (int, float)))

    def _text(self, name: str) -> str:
        value = self._text_or_none(name)
        self._check(name, value is not None)
        return value or ""

    def _text_or_none(self, name: str) -> str | None:
        value = self.document.get(name)
        self._check(name, value is None or (isinstance(value, str) and value != ""))
        return value

    def _choice(self, name: str, allowed: tuple[str, ...]) -> Any:
        self._check(name, self.document.get(name) in allowed)
        return self.document[name]

    def _number(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = self.document.get(name)
        self._check(name, isinstance(value, kind) and not isinstance(value, bool))
        return value

    def _check(self, name: str, holds: bool) -> None:
        if not holds:
            raise MetadataError(
                f"field {name!r} of {self.path} cannot be {self.document.get(name)!r}; {_REMEDY}"
            )
