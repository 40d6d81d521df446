"""A `CudaBackend` that is stricter than CUDA: it does late what CUDA may do late.

Copies and runs happen when somebody waits for them, and not before; memory that nothing was
written to yet holds NaN. Every call outside `activated()` of the same thread, memory that is freed
while work waits, and anything given back out of order is a fault. What a run on a GPU does with a
kernel is done here by a function.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

POISON = 0xFF  # NaN as float16, float32 and float64
ALIGNMENT = 256


class Fault(AssertionError):
    """A use that CUDA forbids or leaves undefined."""


@dataclass(eq=False)
class FakeStream:
    cuda: "FakeCuda"
    handle: int
    waiting: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0

    def put(self, work: Callable[[], None]) -> None:
        self.waiting.append(work)

    def run_to(self, end: int) -> None:
        with self.cuda.lock:
            while self.done < end:
                work = self.waiting.pop(0)
                self.done += 1
                work()

    @property
    def end(self) -> int:
        return self.done + len(self.waiting)

    def synchronize(self) -> None:
        self.cuda.here("cuStreamSynchronize")
        self.run_to(self.end)

    def close(self) -> None:
        self.cuda.give_back(self, "stream")
        if self.waiting:
            raise Fault("a stream was destroyed with work in it")


@dataclass(eq=False)
class FakeEvent:
    cuda: "FakeCuda"
    stream: FakeStream | None = None
    end: int = 0

    def record(self, stream: FakeStream) -> None:
        self.cuda.here("cuEventRecord")
        self.stream, self.end = stream, stream.end

    def synchronize(self) -> None:
        self.cuda.here("cuEventSynchronize")
        if self.stream is None:
            raise Fault("waited for an event that was never recorded")
        self.stream.run_to(self.end)

    def close(self) -> None:
        self.cuda.give_back(self, "event")


@dataclass(eq=False)
class FakeBuffer:
    """Device or pinned memory; `address` is meant for the one, `array` for the other."""

    cuda: "FakeCuda"
    kind: str
    address: int
    array: np.ndarray

    def close(self) -> None:
        self.cuda.give_back(self, self.kind)
        if any(stream.waiting for stream in self.cuda.streams):
            raise Fault(f"{self.kind} memory was freed with work under way")
        self.array.fill(POISON)


@dataclass(eq=False)
class FakeKernel:
    cuda: "FakeCuda"
    function: Callable[..., None]

    def launch(self, grid, block, arguments, stream) -> None:
        self.cuda.here("cuLaunchKernel")
        if not all(isinstance(argument, np.generic) for argument in arguments):
            raise Fault(f"the arguments of a kernel are NumPy scalars, not {arguments}")
        frozen = list(arguments)
        stream.put(lambda: self.function(self.cuda, grid, block, frozen))

    def close(self) -> None:
        self.cuda.give_back(self, "kernel")


class FakeCuda:
    """live: what was made and not given back, oldest first. memory_limit: bytes of device memory.

    functions: name of a kernel -> what it does: (cuda, grid, block, arguments). ordered: what was
    made last goes first, and all goes before `close`; not so where several sessions share it.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., None]] | None = None,
        memory_limit: int | None = None,
    ) -> None:
        self.functions = functions or {}
        self.memory_limit = memory_limit
        self.lock = threading.RLock()
        self.live: list[object] = []
        self.faults: list[str] = []
        self.calls: list[str] = []
        self.closed = 0
        self.ordered = True
        self.pushes = 0
        self._stack = threading.local()
        self._next = ALIGNMENT

    @property
    def streams(self) -> list[FakeStream]:
        return [made for made in self.live if isinstance(made, FakeStream)]

    @property
    def depth(self) -> int:
        """How often this thread is inside `activated`."""
        return getattr(self._stack, "depth", 0)

    def here(self, call: str) -> None:
        """Notes a call, which must come from inside `activated`."""
        self.calls.append(call)
        if self.closed:
            raise self.fault(f"{call} after close")
        if not self.depth:
            raise self.fault(f"{call} without a current context")

    def fault(self, text: str) -> Fault:
        self.faults.append(text)
        return Fault(text)

    def make(self, thing):
        self.live.append(thing)
        return thing

    def give_back(self, thing: object, kind: str) -> None:
        self.here(f"free {kind}")
        if thing not in self.live or (self.ordered and self.live[-1] is not thing):
            raise self.fault(f"{kind} given back out of order, or twice")
        self.live.remove(thing)

    def device_memory(self, address: int) -> FakeBuffer:
        """The device buffer that begins at an address."""
        for made in self.live:
            if isinstance(made, FakeBuffer) and (made.kind, made.address) == ("device", address):
                return made
        raise self.fault(f"no device memory begins at {address}")

    def pointer(self, address: int) -> int:
        """Where the device memory that holds an address really lies."""
        for made in self.live:
            if isinstance(made, FakeBuffer) and made.kind == "device":
                offset = address - made.address
                if 0 <= offset < made.array.nbytes:
                    return made.array.ctypes.data + offset
        raise self.fault(f"{address} is in no device memory")

    @contextmanager
    def activated(self) -> Iterator[None]:
        if self.closed:
            raise self.fault("activated after close")
        self._stack.depth = self.depth + 1
        self.pushes += 1
        try:
            yield
        finally:
            self._stack.depth -= 1

    def stream(self) -> FakeStream:
        self.here("cuStreamCreate")
        return self.make(FakeStream(self, handle=self._address(1)))

    def event(self) -> FakeEvent:
        self.here("cuEventCreate")
        return self.make(FakeEvent(self))

    def device_buffer(self, size: int) -> FakeBuffer:
        self.here("cuMemAlloc")
        held = sum(m.array.nbytes for m in self.live if isinstance(m, FakeBuffer))
        if self.memory_limit is not None and held + size > self.memory_limit:
            from rfdetr_edge.cuda.protocol import refused  # noqa: PLC0415

            raise refused("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY")
        return self.make(self._buffer("device", size))

    def pinned_buffer(self, size: int) -> FakeBuffer:
        self.here("cuMemHostAlloc")
        return self.make(self._buffer("pinned", size))

    def upload(self, target, source, size, stream) -> None:
        self.here("cuMemcpyHtoDAsync")
        self._copy("device", target, "pinned", source, size, stream)

    def download(self, target, source, size, stream) -> None:
        self.here("cuMemcpyDtoHAsync")
        self._copy("pinned", target, "device", source, size, stream)
        target.array[:size] = POISON  # nothing can be read before the stream has come here

    def kernel(self, image: bytes, name: str) -> FakeKernel:
        self.here("cuModuleLoadData")
        return self.make(FakeKernel(self, self.functions[name]))

    def close(self) -> None:
        if self.depth:
            raise self.fault("closed inside activated")
        if self.live and self.ordered:
            raise self.fault(f"closed with {len(self.live)} things not given back")
        self.closed += 1

    def _copy(self, to, target, origin, source, size, stream) -> None:
        if (target.kind, source.kind) != (to, origin):
            raise self.fault(f"a copy from {source.kind} to {target.kind}")
        if size > min(target.array.nbytes, source.array.nbytes):
            raise self.fault("a copy beyond the end of memory")

        def copy() -> None:
            target.array[:size] = source.array[:size]

        stream.put(copy)

    def _buffer(self, kind: str, size: int) -> FakeBuffer:
        return FakeBuffer(self, kind, self._address(size), np.full(size, POISON, np.uint8))

    def _address(self, size: int) -> int:
        with self.lock:
            address = self._next
            self._next += -(-size // ALIGNMENT) * ALIGNMENT
            return address
