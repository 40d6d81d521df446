"""What differs between the TensorRT versions in how they build our engines, as values.

Only the words of their inspectors differ besides, which `exporters.trt.inspector` reads. Precision
is no difference: it stands in the ONNX graph, and every network is strongly typed, which 10.x does
when told and 11 always. What 11 removed (flags for FP16 and INT8, calibrators) is touched nowhere,
and the members that are touched exist in every version listed here, which a test holds against
their names in `tests/tensorrt_members`.
"""

import importlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rfdetr_edge.engine_record import MODULES, Family
from rfdetr_edge.errors import BackendError, BackendUnavailable

Choice = Literal["auto", Family]
"""Whose engine is wanted; "auto": of the TensorRT that can be used, rather than of the RTX one."""
_Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A run of TensorRT versions that build in the same way.

    since, before: (major, minor) of the first version, and of the first that is another dialect's.
    names: for people.
    needs_gpu: it times kernels while it builds, and only for the GPU at hand; otherwise it builds
        anywhere, for every GPU.
    keeps_timings: it can save what it timed, for the next build.
    program, switches: its command line, and what has to be said there for the same build.
    """

    family: Family
    since: _Version
    before: _Version
    names: str
    needs_gpu: bool
    keeps_timings: bool
    program: str
    switches: tuple[str, ...]


DIALECTS = (
    Dialect(
        family="tensorrt",
        since=(10, 3),
        before=(11, 0),
        names="TensorRT 10.3 to 10.x",
        needs_gpu=True,
        keeps_timings=True,
        program="trtexec",
        switches=("--stronglyTyped", "--skipInference"),
    ),
    Dialect(
        family="tensorrt",
        since=(11, 0),
        before=(12, 0),
        names="TensorRT 11",
        needs_gpu=True,
        keeps_timings=True,
        program="trtexec",
        switches=("--skipInference",),
    ),
    Dialect(
        family="tensorrt-rtx",
        since=(1, 7),
        before=(2, 0),
        names="TensorRT-RTX 1.7 and newer",
        needs_gpu=False,
        keeps_timings=False,  # its timing cache does nothing, and asks for a GPU
        program="tensorrt_rtx",
        switches=("--skipInference",),
    ),
)
# Where there is more to say of a version than that it is older: before it -> what it lacks.
_LACKS: Mapping[_Version, str] = {
    (10, 0): "its half precision is known to be wrong for RF-DETR, and it cannot build strongly "
    "typed networks",
    (10, 3): "what of it is used was never held against its API",
}
_REINSTALL: Mapping[Family, str] = {
    "tensorrt": "install all of TensorRT again, in one version, from JetPack or NVIDIA's packages",
    "tensorrt-rtx": "pip install --force-reinstall tensorrt-rtx",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installed:
    """The TensorRT of this machine: its Python module, what that needs, and its full version."""

    module: Any
    dialect: Dialect
    version: str

    def __str__(self) -> str:
        rtx = self.dialect.family == "tensorrt-rtx"
        return f"{'TensorRT-RTX' if rtx else 'TensorRT'} {self.version}"


def installed(choice: Choice = "auto") -> Installed:
    """Imports TensorRT.

    "auto" passes over one that is there and cannot be used, with a warning, where the next one can.
    Raises BackendUnavailable where none is installed or loads, BackendError for a version that is
    no dialect's.
    """
    families: tuple[Family, ...] = get_args(Family) if choice == "auto" else (choice,)
    refusals = []
    for family in families:
        try:
            found = _import(family)
        except BackendError as error:
            refusals.append(error)
            continue
        if found is not None:
            for refusal in refusals:
                logger.warning("%s is used: %s", found, refusal)
            return found
    if refusals:
        raise refusals[0]
    raise BackendUnavailable(
        f"{' or '.join(MODULES[family] for family in families)} is not installed: TensorRT comes "
        "with JetPack or the system (a virtual environment sees it with --system-site-packages); "
        "`pip install tensorrt-rtx` brings TensorRT-RTX; --print-trtexec needs neither"
    )


def _import(family: Family) -> Installed | None:
    """None where it is not installed."""
    name, remedy = MODULES[family], _REINSTALL[family]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise BackendUnavailable(f"{name} is installed in pieces ({error}): {remedy}") from error
    except (ImportError, OSError) as error:  # its libraries, or what they link to
        raise BackendUnavailable(f"{name} does not load ({error}): {remedy}") from error
    return Installed(module, dialect_of(family, module.__version__), module.__version__)


def dialect_of(family: Family, version: str) -> Dialect:
    """The row of a version. Raises BackendError for one that is too old, or newer than known."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        raise BackendError(
            f"{family} says its version is {version!r}, which cannot be understood: "
            f"{_REINSTALL[family]}"
        )
    found = int(numbers[1]), int(numbers[2])
    rows = [row for row in DIALECTS if row.family == family]
    for row in rows:
        if row.since <= found < row.before:
            return row
    oldest = ".".join(map(str, rows[0].since))
    if found >= rows[0].since:
        raise BackendError(
            f"{family} {version} is newer than this rfdetr-edge knows (from {oldest} to below "
            f"{rows[-1].before[0]}); update rfdetr-edge"
        )
    reasons = [text for limit, text in _LACKS.items() if found < limit]
    reason = reasons[0] if family == "tensorrt" else "it was never tried"
    raise BackendError(
        f"{family} {version} is too old: {reason}; use {oldest} or newer"
        + (
            " (JetPack 6.1 has 10.3), or run the .onnx artifact"
            if family == "tensorrt"
            else ": pip install --upgrade tensorrt-rtx"
        )
    )
