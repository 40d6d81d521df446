"""Executors of artifacts behind one small protocol. Knows nothing of classes or boxes, and of
images what `ImageSession` needs.

A new backend is one module with `open_session(path, *, provider, tuning) -> Session` and
`fitting_tuning(path, *, provider) -> Tuning | None`, one row in `BACKENDS`, one line in the
contract suite's parameter list, and one extra.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.errors import ArtifactError, BackendError, BackendUnavailable, InputError
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.tuning import Tuning, tuning_path

ImageRun: TypeAlias = Callable[[Sequence[NDArray[Any]]], dict[str, NDArray[Any]]]
"""Images of any sizes, (h, w, 3) RGB of uint8, to output name -> array, one row for each image."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of an artifact. shape: None where a size is chosen at run time."""

    name: str
    shape: tuple[int | None, ...]
    dtype: "np.dtype[Any]"  # quoted: NumPy 1.21 cannot subscript it

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} ({sizes})"


class Session(Protocol):
    """One loaded artifact on one device."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` needs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""

    @property
    def metadata_json(self) -> str | None:
        """The metadata document that travels with the artifact, None without one."""

    @property
    def provider(self) -> str:
        """What really executes it, in lower case: "cpu", "cuda", ..."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Input name -> array to output name -> array.

        Raises BackendError for feeds that do not fit `inputs`, after `close`, and when the
        executor fails.
        """

    def close(self) -> None:
        """Gives memory back; a second call does nothing."""


class ImageSession(Session, Protocol):
    """A session whose device makes the input tensor too."""

    def image_run(self, spec: InputSpec) -> ImageRun:
        """Prepares the device to preprocess as `spec` says, and gives what runs images so.

        That raises what `run` raises, and InputError for other kinds of images. Raises
        BackendUnavailable without what the preparation takes, BackendError where it fails.
        """


@dataclass(frozen=True, slots=True)
class Backend:
    """A row of the backend table.

    module: imported when the backend is used, and only then.
    library: what that module imports and `extra` installs.
    takes_images: whether its sessions are `ImageSession`s.
    proving: providers on which an artifact is proven before it is handed out, the usual one first;
        None is the backend's best.
    """

    module: str
    library: str
    extra: str
    suffix: str
    takes_images: bool = False
    proving: tuple[str | None, ...] = (None,)


BACKENDS = MappingProxyType(
    {
        "onnxrt": Backend(
            "rfdetr_edge.backends.onnxrt", "onnxruntime", "onnx", ".onnx", proving=("cpu",)
        ),
        "litert": Backend(
            "rfdetr_edge.backends.litert",
            "ai_edge_litert",
            "tflite",
            ".tflite",
            proving=("xnnpack", "reference"),
        ),
        "tensorrt": Backend(
            "rfdetr_edge.backends.tensorrt", "tensorrt", "tensorrt", ".engine", takes_images=True
        ),
    }
)


def open_session(
    path: str | os.PathLike[str],
    backend: str | None = None,
    provider: str | None = None,
    threads: int | None = None,
    tuning: Tuning | None = None,
) -> Session:
    """Loads an artifact.

    backend: a name of `BACKENDS`; None chooses by the file's suffix.
    provider: what shall execute it, e.g. "cpu" or "cuda"; None takes the backend's best.
    threads: CPU threads of one run; None leaves it to the tuning.
    tuning: how the backend runs it; None for its defaults.
    Raises ArtifactError for a missing, broken or unknown kind of file, InputError for options that
    do not exist, BackendUnavailable without the backend's library or the provider asked for, and
    BackendError when the artifact cannot be executed there.
    """
    artifact = Path(path)
    settings = tuning or Tuning()
    if threads is not None:
        settings = replace(settings, threads=threads)
    session: Session = _opened(artifact, _row(artifact, backend), provider, settings)
    return session


def open_image_session(
    path: str | os.PathLike[str], backend: str | None = None, provider: str | None = None
) -> ImageSession:
    """Loads an artifact that shall be fed with images.

    Arguments and errors: as of `open_session`; InputError too for a backend that takes tensors
    alone.
    """
    artifact = Path(path)
    row = _row(artifact, backend)
    if not row.takes_images:
        able = ", ".join(row.suffix for row in BACKENDS.values() if row.takes_images)
        raise InputError(
            f"{row.suffix} artifacts such as {artifact} are preprocessed on the CPU alone; leave "
            f"device_preprocess (--device-preprocess) out, or give an artifact of {able}"
        )
    session: ImageSession = _opened(artifact, row, provider, Tuning())
    return session


def fitting_tuning(
    path: str | os.PathLike[str], backend: str | None = None, provider: str | None = None
) -> Tuning | None:
    """What `rfdetr-edge tune` wrote beside an artifact, for `open_session`.

    None without such a file, where it does not fit this machine (one INFO line says why), and where
    something else than the CPU would run the artifact. Raises MetadataError for a damaged one, and
    what `open_session` raises for options.
    """
    artifact = Path(path)
    if not tuning_path(artifact).is_file():
        return None
    module = _module(_row(artifact, backend))
    tuning: Tuning | None = module.fitting_tuning(artifact, provider=provider)
    return tuning


def proving_providers(path: str | os.PathLike[str]) -> tuple[str | None, ...]:
    """What executes an artifact where it is proven, the usual provider first; see `Backend`.

    Raises ArtifactError for an unknown kind of file.
    """
    return _row(Path(path), None).proving


def check_feeds(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, NDArray[Any]]) -> None:
    """Raises BackendError unless the arrays have the names, shapes and dtypes of `inputs`."""
    if set(feeds) != {spec.name for spec in inputs}:
        wanted = ", ".join(map(str, inputs))
        raise BackendError(
            f"the artifact takes {wanted}; it was fed {', '.join(feeds) or 'nothing'}"
        )
    for spec in inputs:
        array = feeds[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            expected in (None, size) for expected, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != spec.dtype:
            raise BackendError(f"the artifact takes {spec}; it was fed {array.dtype} {array.shape}")


def _opened(artifact: Path, row: Backend, provider: str | None, tuning: Tuning) -> Any:
    if not artifact.is_file():
        problem = "is a folder" if artifact.is_dir() else "does not exist"
        raise ArtifactError(
            f"the artifact {artifact} {problem}; give the path of a {row.suffix} file"
        )
    return _module(row).open_session(artifact, provider=provider, tuning=tuning)


def _row(artifact: Path, backend: str | None) -> Backend:
    if backend is not None:
        if backend not in BACKENDS:
            raise InputError(
                f"there is no backend {backend!r}; choose one of {', '.join(BACKENDS)}"
            )
        return BACKENDS[backend]
    for row in BACKENDS.values():
        if artifact.suffix.lower() == row.suffix:
            return row
    known = ", ".join(f"{name} ({row.suffix})" for name, row in BACKENDS.items())
    raise ArtifactError(
        f"no backend runs {artifact.suffix or 'suffixless'} files such as {artifact}; "
        f"there is {known}, chosen by suffix or by backend=..."
    )


def _module(row: Backend) -> Any:
    remedy = f"pip install 'rfdetr-edge[{row.extra}]'"
    try:
        return importlib.import_module(row.module)
    except ModuleNotFoundError as error:
        if error.name == row.library:
            raise BackendUnavailable(f"{row.library} is not installed: {remedy}") from None
        if not (error.name or "").startswith(f"{row.library}."):
            raise
        raise BackendUnavailable(
            f"{row.library} is installed in pieces ({error}): `rfdetr-edge doctor` names the remedy"
        ) from error
    except ImportError as error:  # its own binaries or what they link to do not fit this system
        raise BackendUnavailable(f"{row.library} does not load ({error}): {remedy}") from error
