"""ONNX Runtime: runs `.onnx` files on a CPU, a CUDA device, or any provider of the build."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from rfdetr_edge.backends import TensorSpec, check_feeds
from rfdetr_edge.errors import ArtifactError, BackendError, BackendUnavailable, InputError
from rfdetr_edge.metadata import METADATA_KEY
from rfdetr_edge.saved_copy import mark_copy, mark_of
from rfdetr_edge.tuning import Optimization, Tuning, fitting

_ERRORS_ONLY = 3
_CPU = "CPUExecutionProvider"
# in every pip build; runs calls to Azure alone, so that a detector named after it ran on the CPU
_REMOTE = "AzureExecutionProvider"
_BROKEN_FILE = (
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidGraph,
    ort_errors.InvalidArgument,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.Fail,
)
_REFUSED = (
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
    ort_errors.EngineError,
    RuntimeError,
    ValueError,
)
_LEVELS: Mapping[Optimization, Any] = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxSession:
    """An ONNX file loaded by ONNX Runtime. `close` drops it; see `backends.Session`."""

    def __init__(self, session: ort.InferenceSession, provider: str) -> None:
        self._session: ort.InferenceSession | None = session
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self.metadata_json: str | None = session.get_modelmeta().custom_metadata_map.get(
            METADATA_KEY
        )
        self.provider = provider

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `backends.Session.run`."""
        if self._session is None:
            raise BackendError("the session is closed; open the artifact again")
        check_feeds(self.inputs, feeds)
        try:
            arrays = self._session.run(None, dict(feeds))
        except (*_BROKEN_FILE, *_REFUSED) as error:
            raise BackendError(f"ONNX Runtime failed on {self.provider}: {error}") from error
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def close(self) -> None:
        """Gives memory back; a second call does nothing."""
        self._session = None


def open_session(path: Path, *, provider: str | None, tuning: Tuning) -> OnnxSession:
    """Loads an ONNX file on exactly the provider named, or on CUDA if the build has it, else CPU.

    provider: ONNX Runtime's name with or without "ExecutionProvider", in any case.
    Raises what `backends.open_session` lists. ONNX Runtime gives single nodes that a provider
    cannot run to the CPU; that the provider itself starts is checked.
    """
    chosen = _provider(provider)
    mark = mark_of(path)
    if mark is not None:
        raise ArtifactError(
            f"{path} is {mark}, made by `rfdetr-edge tune`; open the artifact itself, and this is "
            "used where it fits"
        )
    if tuning.optimized is None:
        session = _load(path, _options(tuning, tuning.optimization), chosen)
    else:  # rewritten already
        session = _load(path.parent / tuning.optimized, _options(tuning, "none"), chosen)
    running = session.get_providers()[0]
    if running != chosen:
        raise BackendError(
            f"ONNX Runtime could not start {_short(chosen)} and fell back to {_short(running)}; "
            f"its log above says which library is missing. Repair that, or ask for "
            f"provider={_short(running)!r}"
        )
    return OnnxSession(session, _short(running))


def fitting_tuning(path: Path, *, provider: str | None) -> Tuning | None:
    """What `rfdetr-edge tune` measured, which it does on the CPU; see `backends.fitting_tuning`."""
    if _provider(provider) != _CPU:
        return None
    return fitting(path, ort.__version__)


def save_optimized(path: Path, optimization: Optimization, target: Path) -> None:
    """Writes the model as ONNX Runtime rewrites it for this machine's CPU, marked as such.

    Raises BackendError when ONNX Runtime cannot load the one or write the other.
    """
    options = _options(Tuning(), optimization)
    options.optimized_model_filepath = str(target)
    try:
        ort.InferenceSession(str(path), options, providers=[_CPU])
    except (*_BROKEN_FILE, *_REFUSED) as error:  # the same kinds for a full disk
        raise BackendError(
            f"ONNX Runtime cannot save {path} as {target}: {error}; is there space left?"
        ) from error
    mark_copy(target, path, ort.__version__)


def _options(tuning: Tuning, optimization: Optimization) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = _LEVELS[optimization]
    options.enable_cpu_mem_arena = tuning.arena
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(tuning.spinning)))
    # Else threads that spin go on for some 20 ms after a run, on cores that others need by then;
    # the next run starts them as fast.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if tuning.threads is not None:
        options.intra_op_num_threads = tuning.threads
    return options


def _load(path: Path, options: ort.SessionOptions, provider: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    except _BROKEN_FILE as error:
        raise ArtifactError(f"{path} is no ONNX file that can be run: {error}") from error
    except _REFUSED as error:
        raise BackendError(
            f"ONNX Runtime cannot run {path} on {_short(provider)}: {error}"
        ) from error


def _provider(name: str | None) -> str:
    """The full name of an available provider."""
    available: list[str] = [full for full in ort.get_available_providers() if full != _REMOTE]
    by_short = {_short(full): full for full in available}
    if name is None:
        return by_short.get("cuda", _CPU)
    wanted = _short(name)
    if wanted in by_short:
        return by_short[wanted]
    offers = f"this onnxruntime {ort.__version__} offers {', '.join(by_short)}"
    if wanted not in {_short(full) for full in ort.get_all_providers()}:
        raise InputError(f"ONNX Runtime knows no provider {name!r}; {offers}")
    hint = ""
    if wanted in ("cuda", "tensorrt"):
        hint = ": pip uninstall onnxruntime, then pip install 'rfdetr-edge[onnx-gpu]'"
    raise BackendUnavailable(f"provider {name!r} cannot be used: {offers}{hint}")


def _short(provider: str) -> str:
    return provider.lower().removesuffix("executionprovider")


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ArtifactError(f"{node.name!r} is {node.type}, which no detector takes or gives")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, shape, np.dtype(_DTYPES[node.type]))
