"""TensorRT: runs `.engine` files on an NVIDIA GPU, where they were built.

Beside an engine lies its record (`engine_record`), which is compared with this machine before
TensorRT sees the file. One stream, one execution context, and two slots of buffers that are made
once: a second thread fills its slot, or reads its results, while the GPU works for the first.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Condition, Lock
from types import MappingProxyType
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.backends import ImageRun, check_feeds
from rfdetr_edge.backends.tensorrt_engine import Engine
from rfdetr_edge.backends.tensorrt_slot import Slot, image_shape, make_slot
from rfdetr_edge.cuda.choice import open_cuda
from rfdetr_edge.cuda.driver import Driver, probe_driver
from rfdetr_edge.cuda.preprocess import DevicePreprocessor, check_frame, compile_kernel
from rfdetr_edge.cuda.protocol import CudaBackend, Stream
from rfdetr_edge.engine_record import MODULES, EngineRecord, Family, check_bytes, read_record
from rfdetr_edge.errors import BackendError, BackendUnavailable, InputError
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.tuning import Tuning

_SLOTS = 2

_REMEDIES: Mapping[Family, str] = MappingProxyType(
    {
        "tensorrt": "TensorRT comes with JetPack or from NVIDIA's own packages; in a venv, make "
        "that with --system-site-packages (docs/jetson.md)",
        "tensorrt-rtx": "pip install tensorrt-rtx",
    }
)


class TensorRtSession:
    """An engine on the first GPU; see `backends.ImageSession`.

    Threads may share it: two runs are under way at a time, and others wait. A batch beyond the
    engine's largest is run in parts, one below its smallest is filled up with zeros.
    """

    def __init__(
        self, cuda: CudaBackend, trt: Any, plan: bytes, name: str, record: EngineRecord
    ) -> None:
        """plan: the bytes of the engine file. name: of it, for errors. `close` closes cuda too."""
        self._cuda = cuda
        self._changed = Condition()
        self._closed = False
        self._order = Lock()
        made = self._made = ExitStack()  # gives back what was made, the last first
        try:
            with cuda.activated():
                self._engine = Engine(trt, plan, name)
                made.callback(self._engine.close)
                _, largest = self._engine.batch
                self._stream: Stream = cuda.stream()
                made.callback(self._stream.close)
                self._free = [
                    make_slot(cuda, self._engine.inputs, self._engine.outputs, largest, made)
                    for _ in range(_SLOTS)
                ]
        except BaseException:
            _release(cuda, made)
            raise
        # also for a session that nobody closed, and at the end of the process
        self._give_back = finalize(self, _release, cuda, made)
        self.inputs = self._engine.inputs
        self.outputs = self._engine.outputs
        self.metadata_json = record.metadata
        self.provider: str = record.family

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `backends.Session.run`."""
        check_feeds(self.inputs, feeds)
        counts = {len(array) for array in feeds.values()}
        if len(counts) != 1 or 0 in counts:
            raise BackendError(f"one or more images a run, of each input as many; fed: {counts}")
        (count,) = counts
        return self._joined(
            self._run_tensors({name: array[part] for name, array in feeds.items()})
            for part in self._parts(count)
        )

    def image_run(self, spec: InputSpec) -> ImageRun:
        """See `backends.ImageSession.image_run`; nvcc compiles what preprocesses."""
        wanted = (3, *spec.resolution)
        fits = [t.dtype == np.float32 and image_shape(t) == wanted for t in self.inputs]
        if fits != [True]:
            raise BackendError(
                f"the engine takes {', '.join(map(str, self.inputs))}, and preprocessing gives "
                f"float32 {wanted}; leave it to the CPU, or build the engine again"
            )
        image = compile_kernel(probe_driver().gpus[0].sm)
        with self._slot(), self._cuda.activated():
            preprocessor = DevicePreprocessor(self._cuda, spec, image)
            self._made.callback(preprocessor.close)

        def run(images: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
            if not images:
                raise BackendError("one or more images a run, not none")
            for image in images:
                check_frame(image)
            return self._joined(
                self._run_images(preprocessor, images[part]) for part in self._parts(len(images))
            )

        return run

    def close(self) -> None:
        """Waits for runs that are under way, then gives memory back; a second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == _SLOTS)
        self._give_back()

    def _parts(self, count: int) -> list[slice]:
        """Of so many images, those of each run."""
        _, largest = self._engine.batch
        return [slice(first, first + largest) for first in range(0, count, largest)]

    def _joined(self, runs: Iterator[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        parts = list(runs)
        if len(parts) == 1:
            return parts[0]
        return {
            spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs
        }

    def _run_tensors(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = len(next(iter(feeds.values())))
        with self._slot() as slot, self._cuda.activated():
            size = self._size(count)
            for buffer in slot.inputs:
                images = buffer.view(size)
                images[:count] = feeds[buffer.spec.name]
                images[count:] = 0
            return self._execute(slot, count, partial(self._upload, slot, size))

    def _run_images(
        self, preprocessor: DevicePreprocessor, images: Sequence[NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        count = len(images)
        with self._slot() as slot, self._cuda.activated():
            (buffer,) = slot.inputs

            def feed() -> None:
                size = self._size(count)
                if count < size:  # zeros everywhere, and then images over the first of them
                    buffer.view(size).fill(0)
                    self._upload(slot, size)
                for index, image in enumerate(images):
                    address = buffer.device.address + buffer.size(index)
                    preprocessor.enqueue(image, address, self._stream)

            return self._execute(slot, count, feed)

    def _size(self, count: int) -> int:
        """Images of a run that shall give `count`."""
        smallest, _ = self._engine.batch
        size: int = max(count, smallest)
        return size

    def _upload(self, slot: Slot, size: int) -> None:
        for buffer in slot.inputs:
            self._cuda.upload(buffer.device, buffer.host, buffer.size(size), self._stream)

    def _execute(self, slot: Slot, count: int, feed: Callable[[], None]) -> dict[str, NDArray[Any]]:
        """feed: puts the inputs' way to the GPU behind what the stream holds."""
        size = self._size(count)
        try:
            with self._order:
                self._enqueue(slot, size, feed)
            slot.done.synchronize()
        except BaseException:
            with suppress(BackendError):  # the slot's memory must not be written any more
                self._stream.synchronize()
            raise
        return {buffer.spec.name: buffer.view(size)[:count].copy() for buffer in slot.outputs}

    def _enqueue(self, slot: Slot, size: int, feed: Callable[[], None]) -> None:
        """One thread at a time: an execution context is for one, as is what preprocesses."""
        shapes = {buffer.spec.name: buffer.view(size).shape for buffer in slot.inputs}
        if not self._engine.fits(shapes):
            self._stream.synchronize()  # the other slot's run was given the shapes of before
            self._engine.reshape(shapes)
        self._engine.bind(slot.addresses)
        feed()
        self._engine.enqueue(self._stream.handle)
        for buffer in slot.outputs:
            self._cuda.download(buffer.host, buffer.device, buffer.size(size), self._stream)
        slot.done.record(self._stream)

    @contextmanager
    def _slot(self) -> Iterator[Slot]:
        """A slot that no other run uses; waits for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free)
            if self._closed:
                raise BackendError("the session is closed; open the artifact again")
            slot = self._free.pop()
        try:
            yield slot
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify_all()


def open_session(path: Path, *, provider: str | None, tuning: Tuning) -> TensorRtSession:
    """Loads an engine with the kind of TensorRT that built it.

    provider: that kind, "tensorrt" or "tensorrt-rtx"; None takes it from the engine's record. The
        first GPU runs it, which CUDA_VISIBLE_DEVICES chooses. Nothing of the tuning is of use here.
    Raises what `backends.open_session` lists; BackendError for an engine of another GPU or version.
    """
    record = read_record(path)
    if provider is not None and provider.lower() != record.family:
        raise InputError(
            f"{path} is an engine of {record.family} and runs on nothing else; leave out "
            f"provider={provider!r}, or open the .onnx of the same model"
        )
    driver = probe_driver()  # before TensorRT, which a host without a driver can crash
    trt = _module(record.family)
    _check_machine(path, record, driver, trt.__version__)
    plan = path.read_bytes()
    check_bytes(path, record, hashlib.sha256(plan).hexdigest())
    return TensorRtSession(open_cuda(), trt, plan, path.name, record)


def fitting_tuning(path: Path, *, provider: str | None) -> Tuning | None:
    """None: what `rfdetr-edge tune` measures are settings of ONNX Runtime."""


def _module(family: Family) -> Any:
    try:
        return importlib.import_module(MODULES[family])
    except (ImportError, OSError) as error:  # OSError for its libraries, which it loads by itself
        raise BackendUnavailable(
            f"the engine needs {MODULES[family]}, which does not load ({error}): "
            f"{_REMEDIES[family]}"
        ) from error


def _check_machine(path: Path, record: EngineRecord, driver: Driver, version: str) -> None:
    """Raises BackendError unless GPU and TensorRT are those that the engine was built for."""
    gpu = driver.gpus[0]
    # a build number more or less, which some packages leave out, does not decide
    fits = record.sm in (None, gpu.sm) and _release_of(record.version) == _release_of(version)
    if fits:
        return
    target = "any GPU" if record.sm is None else f"sm_{record.sm} ({record.gpu or 'unnamed'})"
    raise BackendError(
        f"{path} was built for {target} and {record.family} {record.version}; this is "
        f"sm_{gpu.sm} ({gpu.name}) with {record.family} {version}; build it here again with "
        f"rfdetr-edge export MODEL.onnx --format engine --precision {record.requested}"
    )


def _release_of(version: str) -> list[str]:
    return version.split(".")[:3]


def _release(cuda: CudaBackend, made: ExitStack) -> None:
    try:
        with cuda.activated():
            made.close()
    finally:
        cuda.close()
