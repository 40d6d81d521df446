"""What tells the model that `rfdetr-edge tune` saved for one CPU from an artifact."""

import re
from pathlib import Path

from rfdetr_edge.machine import this_machine

_MARK = b"rfdetr_edge_tuned"
_MARK_ENTRY = re.compile(_MARK + rb"\x12.{1,2}?(the copy of .*)", re.DOTALL)
_TAIL = 2048  # bytes; the mark is the last thing in a file


def mark_copy(path: Path, artifact: Path, onnxruntime: str) -> None:
    """Writes into a saved model what it is, so that nobody takes it for an artifact.

    It becomes the last entry of the file's metadata (field 14 of ONNX's ModelProto): a protobuf
    message goes on where more fields are appended, so this needs no onnx.
    """
    cpu = this_machine().cpu
    text = f"the copy of {artifact.name} that is for onnxruntime {onnxruntime} on {cpu} alone"
    entry = _bytes_field(1, _MARK) + _bytes_field(2, text.encode("utf-8"))
    with path.open("ab") as file:
        file.write(_bytes_field(14, entry))


def mark_of(path: Path) -> str | None:
    """What `mark_copy` wrote into a file; None for any other, and for one that cannot be read.

    Reads the file's end alone: a model for another CPU may be one that ONNX Runtime cannot load.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            found = _MARK_ENTRY.search(file.read())
    except OSError:
        return None
    return None if found is None else found[1].decode("utf-8", errors="replace")


def _bytes_field(number: int, payload: bytes) -> bytes:
    """A field of bytes in protobuf's encoding: its tag, its length as a varint, its bytes."""
    size, length = len(payload), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes([*length, size]) + payload
