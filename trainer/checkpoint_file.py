"""Checkpoint files: opened without running what is in them, and written whole.

Files are opened with torch's weights-only reader, which builds tensors, plain containers, and
`argparse.Namespace` (the settings of legacy files), and refuses the rest, NumPy scalars included.
Only a caller who trusts the file can have the rest built too.
"""

import argparse
import io
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.files import file_sha256, replacing

# What torch's reader raises on damaged bytes: its own checks, and slips of the code behind them.
_DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AssertionError),
    *(TypeError, AttributeError, OSError, struct.error),
)


def read_file(path: Path, *, trust: bool = False) -> tuple[dict[str, Any], str]:
    """What a checkpoint file holds, on the CPU, and the SHA-256 of its bytes.

    trust: builds pickled objects too, which can run any code.
    Raises ArtifactError when the file is missing, damaged, no dictionary, or needs pickled code
    (without trust) or a library that is not installed (with it).
    """
    if not path.is_file():
        raise ArtifactError(
            f"{path} does not exist, or is a folder; give the path of a checkpoint (.pth)"
        )
    try:
        sha256 = file_sha256(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of on odd files ends in an error here
            data = torch.load(path, map_location="cpu", weights_only=not trust)
    except ImportError as error:
        raise ArtifactError(
            f"{path} pickles objects of a library that is not installed: {error}"
        ) from None
    except _DAMAGED as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise ArtifactError(
                f"{path} was not opened, since it pickles {refused[1]}, and pickled objects can "
                "run code. Pass trust_checkpoint=True if you trust whoever made it, or save it "
                "again with tensors, numbers and strings alone"
            ) from None
        raise ArtifactError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it is of another "
            "kind, or truncated: copy or download it again"
        ) from None
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds a {type(data).__name__}, not a checkpoint's dictionary")
    return data, sha256


def write_file(path: Path, data: dict[str, Any]) -> None:
    """Writes a file for torch.load, which appears whole or not at all. Raises OSError."""
    content = io.BytesIO()  # torch.save to a full disk is a RuntimeError that does not say so
    torch.save(data, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
