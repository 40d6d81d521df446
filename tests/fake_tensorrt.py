"""Modules that stand for `tensorrt` and `tensorrt_rtx`, and plans they can run.

A plan holds an ONNX file, which ONNX Runtime executes when the stream gets that far, so that
detections in tests are real. What real TensorRT answers with None or False, these do too, and tell
the logger. They have the members that the runtime uses and no others, so that an unknown one is an
AttributeError; a context used by two threads at a time is a fault.
"""

import enum
import json
import sys
import weakref
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from threading import Lock
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from fake_cuda import FakeCuda, Fault

from rfdetr_edge.backends import tensorrt as backend
from rfdetr_edge.cuda.driver import Driver, Gpu
from rfdetr_edge.engine_record import EngineRecord, write_record

MAGIC = b"fake"
ORIN = Driver("12.6", (Gpu("Orin", "87", integrated=True),))
VERSION = "10.3.0"


class DataType(enum.Enum):
    FLOAT, HALF, INT32, INT64, UINT8, BOOL, INT8 = range(7)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class TensorFormat(enum.Enum):
    LINEAR, CHW32 = range(2)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self._started = True  # the real one crashes where a subclass does not call this


def install(
    monkeypatch: pytest.MonkeyPatch,
    cuda: FakeCuda,
    *,
    driver: Driver = ORIN,
    module: str = "tensorrt",
    version: str = VERSION,
) -> None:
    """Lets the backend find these instead of a driver, CUDA and TensorRT."""
    monkeypatch.setattr(backend, "probe_driver", lambda: driver)
    monkeypatch.setattr(backend, "open_cuda", lambda: cuda)
    monkeypatch.setitem(sys.modules, module, fake_module(cuda, version))


def save_engine(
    path: Path,
    onnx: Path,
    *,
    batch: tuple[int, int, int] = (1, 2, 4),
    metadata_json: str | None = None,
    faults: tuple[str, ...] = (),
    **changes,
) -> Path:
    """Writes a plan and its record. batch: the profile. changes: fields of the record.

    faults: what the plan makes TensorRT do wrong: "context", "address", "shape", "infer",
    "enqueue", "throw", "host", "format".
    """
    plan = MAGIC + json.dumps({"batch": batch, "faults": faults}).encode() + b"\n"
    path.write_bytes(plan + onnx.read_bytes())
    fields = {
        "engine_sha256": sha256(path.read_bytes()).hexdigest(),
        "onnx_sha256": sha256(onnx.read_bytes()).hexdigest(),
        "family": "tensorrt",
        "version": f"{VERSION}.30",
        "cuda": "12.6",
        "driver": "540.4.0",
        "gpu": "Orin",
        "sm": "87",
        "requested": "fp32",
        "inspected": {"Float": 3},
        "batch": batch,
        "build_seconds": 1.0,
        "metadata": metadata_json,
    }
    write_record(path, EngineRecord(**(fields | changes)))
    return path


def fake_module(cuda: FakeCuda, version: str = VERSION) -> ModuleType:
    """What `import tensorrt` gives. cuda: whose memory and streams its engines use."""

    class Logging:
        """TensorRT's one pointer to a logger, which keeps nothing alive."""

        def __init__(self) -> None:
            self.pointer: weakref.ref | None = None
            self.users = 0

        def register(self, logger: ILogger) -> None:
            if not logger._started:
                raise cuda.fault("a logger whose base was not started")
            if not self.users:
                self.pointer = weakref.ref(logger)
            self.users += 1

        def log(self, severity: Severity, message: str) -> None:
            logger = self.pointer and self.pointer()
            if logger is None:
                raise cuda.fault("told a logger that is gone")
            logger.log(severity, message)

    logging = Logging()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            logging.register(logger)
            self._mark = cuda.make(object())

        def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
            cuda.here("deserialize_cuda_engine")
            if not plan.startswith(MAGIC):
                logging.log(ILogger.VERBOSE, "reading")
                logging.log(ILogger.ERROR, "Magic tag does not match")
                return None
            head, _, onnx = plan.removeprefix(MAGIC).partition(b"\n")
            return Engine(json.loads(head), onnx)

        def __del__(self) -> None:
            _drop(cuda, getattr(self, "_mark", None), "runtime")
            logging.users -= 1

    class Engine:
        def __init__(self, head: dict, onnx: bytes) -> None:
            self._head = head
            self._session = _onnx_session(onnx)
            self._tensors = {
                node.name: (node, mode)
                for nodes, mode in (
                    (self._session.get_inputs(), TensorIOMode.INPUT),
                    (self._session.get_outputs(), TensorIOMode.OUTPUT),
                )
                for node in nodes
            }
            self._mark = cuda.make(object())
            self.num_io_tensors = len(self._tensors)

        def create_execution_context(self) -> "Context | None":
            cuda.here("create_execution_context")
            if "context" in self._head["faults"]:
                logging.log(ILogger.ERROR, "no memory for activations")
                return None
            return Context(self)

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return self._tensors[name][1]

        def get_tensor_dtype(self, name: str) -> DataType:
            kinds = {"tensor(float)": DataType.FLOAT, "tensor(bool)": DataType.BOOL}
            return kinds[self._tensors[name][0].type]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = self._tensors[name][0].shape
            return tuple(size if isinstance(size, int) else -1 for size in shape)

        def get_tensor_format(self, name: str) -> TensorFormat:
            return TensorFormat.CHW32 if "format" in self._head["faults"] else TensorFormat.LINEAR

        def get_tensor_location(self, name: str) -> TensorLocation:
            host = "host" in self._head["faults"]
            return TensorLocation.HOST if host else TensorLocation.DEVICE

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            if profile or self.get_tensor_mode(name) != TensorIOMode.INPUT:
                raise cuda.fault("there is one profile, and it is of inputs")
            rest = self.get_tensor_shape(name)[1:]
            return [(size, *rest) for size in self._head["batch"]]

        def __del__(self) -> None:
            _drop(cuda, getattr(self, "_mark", None), "engine")

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._faults = engine._head["faults"]
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._used = Lock()
            self._mark = cuda.make(object())

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            cuda.here("set_input_shape")
            if any(stream.waiting for stream in cuda.streams):
                raise cuda.fault("shapes changed with a run under way")
            smallest, _, largest = self._engine._head["batch"]
            declared = self._engine.get_tensor_shape(name)
            fits = all(d in (-1, s) for d, s in zip(declared, shape, strict=True))
            if "shape" in self._faults or not fits or not smallest <= shape[0] <= largest:
                logging.log(ILogger.ERROR, f"{shape} is outside of the profile")
                return False
            self._shapes[name] = shape
            return True

        def infer_shapes(self) -> list[str]:
            names = [node.name for node in self._engine._session.get_inputs()]
            if "infer" in self._faults:
                return names
            return [name for name in names if name not in self._shapes]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            (count,) = {shape[0] for shape in self._shapes.values()}
            return tuple(count if s < 0 else s for s in self._engine.get_tensor_shape(name))

        def set_tensor_address(self, name: str, address: int) -> bool:
            cuda.here("set_tensor_address")
            if "address" in self._faults or name not in self._engine._tensors:
                return False
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            cuda.here("execute_async_v3")
            if not self._used.acquire(blocking=False):
                raise cuda.fault("two threads in one execution context")
            try:
                return self._enqueue(stream)
            finally:
                self._used.release()

        def _enqueue(self, handle: int) -> bool:
            if "throw" in self._faults:
                raise RuntimeError("internal error of the bindings")
            if "enqueue" in self._faults or set(self._addresses) != set(self._engine._tensors):
                logging.log(ILogger.ERROR, "enqueueV3: not every address is set")
                return False
            (stream,) = [stream for stream in cuda.streams if stream.handle == handle]
            memory = {
                name: cuda.device_memory(address) for name, address in self._addresses.items()
            }
            session, shapes = self._engine._session, dict(self._shapes)

            def work() -> None:
                feeds = {
                    name: _tensor(memory[name].array, shape).copy()
                    for name, shape in shapes.items()
                }
                names = [node.name for node in session.get_outputs()]
                for name, found in zip(names, session.run(names, feeds), strict=True):
                    _tensor(memory[name].array, found.shape)[:] = found

            stream.put(work)
            return True

        def __del__(self) -> None:
            _drop(cuda, getattr(self, "_mark", None), "execution context")

    module = ModuleType("tensorrt")
    module.__version__ = version
    for member in (ILogger, DataType, TensorIOMode, TensorLocation, TensorFormat, Runtime):
        setattr(module, member.__name__, member)
    module._Engine, module._Context = Engine, Context
    return module


def _drop(cuda: FakeCuda, thing: object, kind: str) -> None:
    """As `give_back`, from a `__del__`, where nobody sees an exception: `faults` tells."""
    if thing is not None:
        with suppress(Fault):
            cuda.give_back(thing, kind)


def _tensor(memory: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return memory[: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


@lru_cache(maxsize=8)
def _onnx_session(onnx: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
