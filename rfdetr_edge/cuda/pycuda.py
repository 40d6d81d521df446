"""`CudaBackend` by pycuda.

Without `pycuda.autoinit`, which makes a context of its own beside the primary one that TensorRT
uses. pycuda retains a primary context but cannot give it back in between: `detach` leaves it
current in the thread that calls it, and does nothing in any other (pycuda 2026.1,
`context::detach`). So it is retained once, for all sessions, until the process ends; left alone, it
would then be taken for a context of the other kind, with a warning on stderr. pycuda frees streams,
events and modules when the last reference goes, and does it right only where the context is
current: inside `activated()`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import finalize

import numpy as np
import pycuda.driver as drv
from numpy.typing import NDArray

from rfdetr_edge.cuda.protocol import (
    DeviceBuffer,
    Event,
    Kernel,
    PinnedBuffer,
    Size,
    Stream,
    refused,
)

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which pycuda has no name


class Pycuda:
    """See `protocol.CudaBackend`."""

    def __init__(self) -> None:
        with _mapped("its primary context"):
            self._context = _primary_context()

    @contextmanager
    def activated(self) -> Iterator[None]:
        """See `protocol.CudaBackend`."""
        with _mapped("cuCtxPushCurrent"):
            self._context.push()
        try:
            yield
        finally:
            with _mapped("cuCtxPopCurrent"):
                drv.Context.pop()

    def stream(self) -> Stream:
        """See `protocol.CudaBackend`."""
        return _Stream()

    def event(self) -> Event:
        """See `protocol.CudaBackend`."""
        return _Event()

    def device_buffer(self, size: int) -> DeviceBuffer:
        """See `protocol.CudaBackend`."""
        return _DeviceBuffer(size)

    def pinned_buffer(self, size: int) -> PinnedBuffer:
        """See `protocol.CudaBackend`."""
        return _PinnedBuffer(size)

    def upload(self, target: DeviceBuffer, source: PinnedBuffer, size: int, stream: Stream) -> None:
        """See `protocol.CudaBackend`."""
        with _mapped("cuMemcpyHtoDAsync"):
            drv.memcpy_htod_async(target.address, source.array[:size], _pycudas(stream))

    def download(
        self, target: PinnedBuffer, source: DeviceBuffer, size: int, stream: Stream
    ) -> None:
        """See `protocol.CudaBackend`."""
        with _mapped("cuMemcpyDtoHAsync"):
            drv.memcpy_dtoh_async(target.array[:size], source.address, _pycudas(stream))

    def kernel(self, image: bytes, name: str) -> Kernel:
        """See `protocol.CudaBackend`."""
        return _Kernel(image, name)

    def close(self) -> None:
        """Nothing: see the head of this file."""


def open_cuda() -> Pycuda:
    """The first GPU. Raises BackendError when CUDA does not start."""
    return Pycuda()


@lru_cache(maxsize=1)
def _primary_context() -> Any:
    drv.init()
    context = drv.Device(0).retain_primary_context()
    finalize(Pycuda, _detach, context)  # at the end; sessions, which are made later, go before
    return context


def _detach(context: Any) -> None:
    context.push()  # pycuda lets go only of the current one
    context.detach()


@contextmanager
def _mapped(call: str) -> Iterator[None]:
    """pycuda's errors as ours; its texts name the driver call."""
    try:
        yield
    except drv.Error as error:
        raise refused(call, error) from error


class _Stream:
    def __init__(self) -> None:
        with _mapped("cuStreamCreate"):
            self.pycudas: Any = drv.Stream(_NON_BLOCKING)
        self.handle: int = self.pycudas.handle

    def synchronize(self) -> None:
        with _mapped("cuStreamSynchronize"):
            self.pycudas.synchronize()

    def close(self) -> None:
        self.pycudas = None


def _pycudas(stream: Stream) -> Any:
    """pycuda's own object for a stream, which must be one of this backend."""
    if not isinstance(stream, _Stream):
        raise TypeError(f"{stream} is a stream of another library than pycuda")
    return stream.pycudas


class _Event:
    def __init__(self) -> None:
        with _mapped("cuEventCreate"):
            self._event: Any = drv.Event(drv.event_flags.DISABLE_TIMING)

    def record(self, stream: Stream) -> None:
        with _mapped("cuEventRecord"):
            self._event.record(_pycudas(stream))

    def synchronize(self) -> None:
        with _mapped("cuEventSynchronize"):
            self._event.synchronize()

    def close(self) -> None:
        self._event = None


class _DeviceBuffer:
    def __init__(self, size: int) -> None:
        with _mapped("cuMemAlloc"):
            self._allocation = drv.mem_alloc(size)
        self.address = int(self._allocation)

    def close(self) -> None:
        with _mapped("cuMemFree"):
            self._allocation.free()


class _PinnedBuffer:
    def __init__(self, size: int) -> None:
        with _mapped("cuMemHostAlloc"):
            self.array: NDArray[np.uint8] = drv.pagelocked_empty(size, np.uint8)
        self._allocation: Any = self.array.base

    def close(self) -> None:
        with _mapped("cuMemFreeHost"):
            self._allocation.free()


class _Kernel:
    def __init__(self, image: bytes, name: str) -> None:
        with _mapped("cuModuleLoadData"):
            self._module: Any = drv.module_from_buffer(image)
            self._function: Any = self._module.get_function(name)

    def launch(
        self, grid: Size, block: Size, arguments: Sequence[np.generic], stream: Stream
    ) -> None:
        with _mapped("cuLaunchKernel"):
            self._function(*arguments, grid=grid, block=block, stream=_pycudas(stream))

    def close(self) -> None:
        self._function = self._module = None
