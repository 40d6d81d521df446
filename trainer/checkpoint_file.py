"""Opening a checkpoint file without running what is in it.

Files are opened with torch's weights-only reader, which builds tensors, plain containers, and
`argparse.Namespace` (the settings of legacy files), and refuses the rest, NumPy scalars included.
"""

import argparse
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.files import file_sha256

# What torch's reader raises on damaged bytes: its own checks, and slips of the code behind them.
_DAMAGED = (
    *(RuntimeError, EOFError, ValueError, LookupError, AssertionError),
    *(TypeError, AttributeError, OSError, struct.error),
)


def read_file(path: Path) -> tuple[dict[str, Any], str]:
    """What a checkpoint file holds, on the CPU, and the SHA-256 of its bytes.

    Raises ArtifactError when the file is missing, damaged, no dictionary, or needs pickled code.
    """
    try:
        sha256 = file_sha256(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of on odd files ends in an error here
            data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} does not exist; give the path of a checkpoint (.pth)"
        ) from None
    except IsADirectoryError:
        raise ArtifactError(f"{path} is a folder; give the path of a checkpoint (.pth)") from None
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        raise ArtifactError(_why_unreadable(path, error)) from None
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds a {type(data).__name__}, not a checkpoint's dictionary")
    return data, sha256


def _why_unreadable(path: Path, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            return (
                f"{path} was not opened, since it pickles {refused[1]}, and pickled objects can "
                "run code. Save it again with tensors, numbers and strings alone"
            )
        reason = "its pickle is not that of a weights file"  # torch's words advise to trust it
    return (
        f"{path} cannot be read as a checkpoint ({reason}); it is of another kind, or truncated: "
        "copy or download it again"
    )
