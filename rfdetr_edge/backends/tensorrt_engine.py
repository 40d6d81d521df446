"""A deserialised TensorRT engine with its one execution context, and what it says of itself.

All of the runtime's calls to TensorRT but its logger's (`tensorrt_log`). It takes the module as a
value, `tensorrt` (10.3 or newer) or `tensorrt_rtx`, and touches only members that all of them have.
TensorRT says that something went wrong by None or False and tells its logger why, so each answer is
checked and each error carries what the logger heard last. Knows nothing of memory; works inside
`activated()`.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from rfdetr_edge.backends import TensorSpec
from rfdetr_edge.backends.tensorrt_log import listener
from rfdetr_edge.errors import ArtifactError, BackendError

_PROFILE = 0

Shapes = Mapping[str, tuple[int, ...]]


class Engine:
    """See above.

    inputs, outputs: an open batch is None. batch: smallest and largest number of images of a run.
    """

    def __init__(self, trt: Any, plan: bytes, name: str) -> None:
        """plan: the bytes of the engine file. name: of it, for errors.

        Raises BackendError where TensorRT refuses it, ArtifactError for one that is no detector's.
        """
        self._name = name
        self._heard: deque[str] = listener(trt).heard
        self._heard.clear()  # what others heard is not about this one
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        try:
            self._runtime = self._given(trt.Runtime(listener(trt)), "runtime")
            self._engine = self._given(self._runtime.deserialize_cuda_engine(plan), "engine of it")
            self._context = self._given(self._engine.create_execution_context(), "context")
            self._read_tensors(trt)
        except (RuntimeError, TypeError) as error:  # as its bindings raise for what C++ threw
            self.close()
            raise self._refused("does not load", error) from error
        except BaseException:
            self.close()
            raise

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where the next runs read and write; kept until another address is given."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._done(self._context.set_tensor_address(name, address), "set_tensor_address")
                self._addresses[name] = address

    def fits(self, shapes: Shapes) -> bool:
        """Whether the context is set to these shapes of inputs."""
        return self._shapes == shapes

    def reshape(self, shapes: Shapes) -> None:
        """Sets the shapes of inputs for the next runs; nothing may be under way.

        Raises BackendError where TensorRT refuses one or derives outputs that were not declared.
        """
        self._shapes = {}
        context = self._context
        try:
            for name, shape in shapes.items():
                self._done(context.set_input_shape(name, shape), f"set_input_shape {name} {shape}")
            missing = context.infer_shapes()
        except (RuntimeError, TypeError) as error:
            raise self._refused("does not take these shapes", error) from error
        if missing:
            raise self._refused("does not run", f"the shapes of {', '.join(missing)} stay open")
        (count,) = {shape[0] for shape in shapes.values()}
        for spec in self.outputs:
            found = tuple(context.get_tensor_shape(spec.name))
            if found != (count, *spec.shape[1:]):
                raise self._refused("does not run", f"{spec} turned out as {found}")
        self._shapes = dict(shapes)

    def enqueue(self, stream: int) -> None:
        """Puts one run behind what the stream (a CUstream) holds."""
        try:
            started = self._context.execute_async_v3(stream)
        except RuntimeError as error:
            raise self._refused("does not run", error) from error
        self._done(started, "execute_async_v3")

    def close(self) -> None:
        """Drops context, engine and runtime, in this order."""
        self._context = None
        self._engine = None
        self._runtime = None

    def _read_tensors(self, trt: Any) -> None:
        """Fills `inputs` and `outputs`, each in the engine's order, and `batch`.

        The engine is in no local name, here and above: an exception keeps those alive, and an
        engine that goes after its CUDA context crashes.
        """
        dtypes: dict[Any, np.dtype[Any]] = {
            trt.DataType.FLOAT: np.dtype(np.float32),
            trt.DataType.HALF: np.dtype(np.float16),
            trt.DataType.UINT8: np.dtype(np.uint8),
            trt.DataType.INT32: np.dtype(np.int32),
            trt.DataType.INT64: np.dtype(np.int64),
        }
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind, layout = self._engine.get_tensor_dtype(name), self._engine.get_tensor_format(name)
            on_device = self._engine.get_tensor_location(name) == trt.TensorLocation.DEVICE
            sizes = self._engine.get_tensor_shape(name)
            shape = tuple(None if size < 0 else int(size) for size in sizes)
            plain = kind in dtypes and layout == trt.TensorFormat.LINEAR and on_device
            if not plain or not shape or None in shape[1:]:
                raise ArtifactError(
                    f"{name!r} of {self._name} is {kind} {shape} in {layout}, which no detector "
                    "takes or gives: nothing but the batch may stay open; export the ONNX again "
                    "and build the engine of that"
                )
            taken = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if taken else outputs).append(TensorSpec(name, shape, dtypes[kind]))
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        batches = {spec.shape[0] for spec in (*inputs, *outputs)}
        if not inputs or len(batches) != 1:
            listed = ", ".join(map(str, (*inputs, *outputs)))
            raise ArtifactError(
                f"{self._name} is no detector: it needs an input, and one batch for all of {listed}"
            )
        (fixed,) = batches
        if fixed is None:
            profiles = [self._engine.get_tensor_profile_shape(i.name, _PROFILE) for i in inputs]
            self.batch = max(p[0][0] for p in profiles), min(p[2][0] for p in profiles)
        else:
            self.batch = fixed, fixed

    def _given(self, made: Any, what: str) -> Any:
        if made is None:
            raise self._refused("does not load", f"TensorRT made no {what}")
        return made

    def _done(self, answer: bool, call: str) -> None:
        if not answer:
            raise self._refused("does not run", f"{call} failed")

    def _refused(self, verdict: str, reason: object) -> BackendError:
        heard = "; ".join(self._heard) or "it told its logger nothing"
        return BackendError(
            f"{self._name} {verdict}: {reason} (TensorRT: {heard}); build the engine again on this "
            "machine with rfdetr-edge export MODEL.onnx --format engine"
        )
