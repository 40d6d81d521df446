"""LiteRT: runs `.tflite` files on a CPU, by XNNPACK or its own kernels, or by a delegate."""

import ctypes
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert
from numpy.typing import NDArray

from rfdetr_edge.associated import read_document
from rfdetr_edge.backends import TensorSpec, check_feeds
from rfdetr_edge.errors import ArtifactError, BackendError, BackendUnavailable, InputError
from rfdetr_edge.machine import this_machine
from rfdetr_edge.tuning import Tuning

_XNNPACK, _BUILTIN, _REFERENCE = "xnnpack", "builtin", "reference"
_KERNELS = {
    _XNNPACK: litert.OpResolverType.AUTO,
    _BUILTIN: litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    _REFERENCE: litert.OpResolverType.BUILTIN_REF,
}
_LIBRARIES = (".so", ".dylib", ".dll")
_PLUGIN = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")
# the kind that LiteRT gives to what a delegate took over
_DELEGATED = "DELEGATE"
_MISSING_OPERATOR = ("unresolved custom op", "Select TensorFlow op", "Regular TensorFlow op")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input or output: what callers see of it, and how LiteRT holds it.

    spec: a quantised tensor is float32 there, and an image (batch, 3, height, width).
    stored: as LiteRT holds it. scale: 0 where it is not quantised; else a number is
    (stored - zero_point) * scale. channels_last: the image is held as (batch, height, width, 3).
    """

    spec: TensorSpec
    index: int
    stored: "np.dtype[Any]"
    scale: float
    zero_point: int
    channels_last: bool = False

    def encode(self, array: NDArray[Any]) -> NDArray[Any]:
        """What the caller has, as LiteRT holds it."""
        if self.channels_last:
            array = array.transpose(0, 2, 3, 1)
        if self.scale:
            limits = np.iinfo(self.stored)
            array = np.rint(array / self.scale + self.zero_point).clip(limits.min, limits.max)
        return np.ascontiguousarray(array, self.stored)

    def decode(self, array: NDArray[Any]) -> NDArray[Any]:
        """What LiteRT gives, as the caller sees it."""
        if not self.scale:
            return array
        return (array.astype(np.float32) - self.zero_point) * np.float32(self.scale)


class LiteRtSession:
    """A .tflite file loaded by LiteRT; see `backends.Session`.

    Threads may share it: LiteRT runs one image at a time, and the others wait. A session for each
    thread lets them run side by side.

    partitions: how many parts of the graph the delegate took over, each as one node; what is
        between them runs on LiteRT's own kernels. 0 without a delegate.
    """

    def __init__(
        self, interpreter: litert.Interpreter, path: Path, provider: str, partitions: int
    ) -> None:
        self._interpreter: litert.Interpreter | None = interpreter
        self._lock = Lock()
        inputs, outputs = _signature_names(interpreter)
        self._inputs = tuple(
            _image(_tensor(found, inputs)) for found in interpreter.get_input_details()
        )
        self._outputs = tuple(_tensor(found, outputs) for found in interpreter.get_output_details())
        self.inputs = tuple(tensor.spec for tensor in self._inputs)
        self.outputs = tuple(tensor.spec for tensor in self._outputs)
        self.metadata_json = read_document(path)
        self.provider = provider
        self.partitions = partitions

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `backends.Session.run`."""
        with self._lock:
            if self._interpreter is None:
                raise BackendError("the session is closed; open the artifact again")
            check_feeds(self.inputs, feeds)
            try:
                self._feed(self._interpreter, feeds)
                self._interpreter.invoke()
                return {
                    tensor.spec.name: tensor.decode(self._interpreter.get_tensor(tensor.index))
                    for tensor in self._outputs
                }
            except (RuntimeError, ValueError) as error:
                raise BackendError(f"LiteRT failed on {self.provider}: {error}") from error

    def close(self) -> None:
        """Gives memory back; a second call does nothing."""
        with self._lock:
            self._interpreter = None

    def _feed(self, interpreter: litert.Interpreter, feeds: Mapping[str, NDArray[Any]]) -> None:
        arrays = {tensor.index: tensor.encode(feeds[tensor.spec.name]) for tensor in self._inputs}
        held = {found["index"]: found["shape"] for found in interpreter.get_input_details()}
        changed = {i: array.shape for i, array in arrays.items() if array.shape != (*held[i],)}
        for index, shape in changed.items():
            interpreter.resize_tensor_input(index, shape)
        if changed:
            interpreter.allocate_tensors()
        for index, array in arrays.items():
            interpreter.set_tensor(index, array)


def open_session(path: Path, *, provider: str | None, tuning: Tuning) -> LiteRtSession:
    """Loads a .tflite file.

    provider: "xnnpack", fast kernels for CPUs, which None means too; "builtin", LiteRT's own
        kernels; "reference", the plain and slow ones that define what an operator computes; or the
        path of a delegate's library. Of the tuning, threads are of use here.
    Raises what `backends.open_session` lists. Nodes that a delegate cannot run are left to the
    LiteRT's own kernels; that it runs some is checked.
    """
    name = _XNNPACK if provider is None else provider
    interpreter = _load(path, name, tuning.threads or this_machine().cores)
    kinds = [node["op_name"] for node in interpreter._get_ops_details()]
    partitions = kinds.count(_DELEGATED)
    short = name.lower() if name.lower() in _KERNELS else Path(name).name.lower()
    if short not in (_BUILTIN, _REFERENCE) and not partitions:
        raise BackendError(
            f"{short} can run no part of {path}; ask for provider={_BUILTIN!r} to run it on "
            "LiteRT's own kernels"
        )
    logger.info("%s: %d nodes, of which %s runs %d parts", path, len(kinds), short, partitions)
    return LiteRtSession(interpreter, path, short, partitions)


def fitting_tuning(path: Path, *, provider: str | None) -> Tuning | None:
    """None: what `rfdetr-edge tune` measures are settings of ONNX Runtime."""


def _load(path: Path, provider: str, threads: int) -> litert.Interpreter:
    """The interpreter with everything in its place for a first run."""
    kernels = _KERNELS.get(provider.lower())
    delegates = None if kernels else [_delegate(provider)]
    try:
        interpreter = litert.Interpreter(
            str(path),
            num_threads=threads,
            experimental_op_resolver_type=kernels or _KERNELS[_BUILTIN],
            experimental_delegates=delegates,
        )
    except ValueError as error:
        raise ArtifactError(f"{path} is no TFLite file that can be run: {error}") from error
    except RuntimeError as error:
        raise BackendError(f"LiteRT cannot run {path} on {provider}: {error}") from error
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        hint = ""
        if any(text in str(error) for text in _MISSING_OPERATOR):
            hint = "; convert it again to built-in operators alone, as `rfdetr-edge export` does"
        raise BackendError(f"LiteRT cannot run {path} on {provider}: {error}{hint}") from error
    return interpreter


def _delegate(library: str) -> Any:
    if not library.endswith(_LIBRARIES):
        raise InputError(
            f"LiteRT knows no provider {library!r}; there is {', '.join(_KERNELS)}, and the path "
            f"of a delegate's library ({', '.join(_LIBRARIES)})"
        )
    try:
        # LiteRT's own wrapper, when it fails at this, fails again as it is thrown away, on stderr
        loaded = ctypes.PyDLL(library)
        for name in _PLUGIN:
            loaded[name]  # looks it up
        return litert.load_delegate(library)
    except (OSError, AttributeError, ValueError) as error:
        # not there or of another system; no delegate; no device for it
        raise BackendUnavailable(
            f"the delegate {library} cannot be used: {error}; ask for provider={_XNNPACK!r}, or "
            "install what it needs"
        ) from error


def _signature_names(interpreter: litert.Interpreter) -> tuple[dict[int, str], dict[int, str]]:
    """What the signature calls inputs and outputs, by index; nothing where there is none."""
    if not interpreter.get_signature_list():
        return {}, {}
    # not kept: while there is a runner, the interpreter refuses to run by itself
    runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
    inputs, outputs = (
        {found["index"]: name for name, found in details.items()}
        for details in (runner.get_input_details(), runner.get_output_details())
    )
    return inputs, outputs


def _tensor(found: Mapping[str, Any], names: Mapping[int, str]) -> _Tensor:
    scale, zero_point = found["quantization"]
    stored = np.dtype(found["dtype"])
    shape = tuple(None if size < 0 else int(size) for size in found["shape_signature"])
    seen = np.dtype(np.float32) if scale else stored
    name = names.get(found["index"], found["name"])
    return _Tensor(TensorSpec(name, shape, seen), found["index"], stored, scale, zero_point)


def _image(tensor: _Tensor) -> _Tensor:
    """The same, with the channels of an image in front."""
    shape = tensor.spec.shape
    if len(shape) != 4 or shape[3] != 3 or shape[1] == 3:
        return tensor
    spec = TensorSpec(tensor.spec.name, (shape[0], 3, *shape[1:3]), tensor.spec.dtype)
    return _Tensor(
        spec, tensor.index, tensor.stored, tensor.scale, tensor.zero_point, channels_last=True
    )
