"""The metadata of a `.tflite`: a document behind the model, and the same text beside it.

TFLite's custom for files that travel with a model is a ZIP archive appended to it: interpreters
read the model's own bytes, which come first, and every ZIP reader finds the archive at the end.
Ours holds `rfdetr_edge.json`, not compressed. The sidecar `<artifact>.json` is for programs that
read no ZIP, and for a file whose archive was lost on the way through another tool. A TensorRT
engine has a sidecar alone (`rfdetr_edge.engine_record`).
"""

import io
import zipfile
from pathlib import Path

from rfdetr_edge.errors import MetadataError
from rfdetr_edge.files import replacing

DOCUMENT = "rfdetr_edge.json"

# what a damaged archive raises where it is opened or read
_DAMAGED = (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError)


def read_document(artifact: Path) -> str | None:
    """The document inside a `.tflite`, else that of its sidecar; None without either.

    Raises MetadataError for one that cannot be read.
    """
    embedded = _embedded(artifact)
    sidecar = sidecar_path(artifact)
    if embedded is not None or not sidecar.is_file():
        return embedded
    try:
        return sidecar.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MetadataError(
            f"{sidecar} cannot be read ({error}); export the artifact again"
        ) from None


def model_of(content: bytes) -> bytes:
    """The model's own bytes of an artifact, without the archive behind them."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            return content[: min((entry.header_offset for entry in entries), default=None)]
    except _DAMAGED:  # there is none
        return content


def with_document(model: bytes, document: str) -> bytes:
    """The bytes of an artifact: a model's own, then the document; always the same for the same."""
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(DOCUMENT), document)
    return file.getvalue()


def write_sidecar(artifact: Path, document: str) -> None:
    """Writes the document beside the artifact, whole or not at all."""
    with replacing(sidecar_path(artifact)) as temporary:
        temporary.write_text(document + "\n", encoding="utf-8")


def sidecar_path(artifact: Path) -> Path:
    """Where the document beside an artifact lies."""
    return artifact.with_name(f"{artifact.name}.json")


def _embedded(artifact: Path) -> str | None:
    try:
        archive = zipfile.ZipFile(artifact)
    except _DAMAGED:  # most often there is none
        return None
    with archive:
        if DOCUMENT not in archive.namelist():
            return None
        try:
            return archive.read(DOCUMENT).decode()
        except _DAMAGED as error:
            raise MetadataError(
                f"the metadata inside {artifact} is damaged ({error}); export it again"
            ) from None
