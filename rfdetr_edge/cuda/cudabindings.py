"""`CudaBackend` by cuda-bindings, NVIDIA's own package, which has wheels for every platform."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from cuda.bindings import driver as cu
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


class CudaBindings:
    """See `protocol.CudaBackend`."""

    def __init__(self) -> None:
        _call(cu.cuInit, 0)
        self._device = _call(cu.cuDeviceGet, 0)
        self._context = _call(cu.cuDevicePrimaryCtxRetain, self._device)

    @contextmanager
    def activated(self) -> Iterator[None]:
        """See `protocol.CudaBackend`."""
        _call(cu.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            _call(cu.cuCtxPopCurrent)

    def stream(self) -> Stream:
        """See `protocol.CudaBackend`."""
        return _Stream(_call(cu.cuStreamCreate, cu.CUstream_flags.CU_STREAM_NON_BLOCKING.value))

    def event(self) -> Event:
        """See `protocol.CudaBackend`."""
        return _Event(_call(cu.cuEventCreate, cu.CUevent_flags.CU_EVENT_DISABLE_TIMING.value))

    def device_buffer(self, size: int) -> DeviceBuffer:
        """See `protocol.CudaBackend`."""
        return _DeviceBuffer(int(_call(cu.cuMemAlloc, size)))

    def pinned_buffer(self, size: int) -> PinnedBuffer:
        """See `protocol.CudaBackend`."""
        return _PinnedBuffer(int(_call(cu.cuMemHostAlloc, size, 0)), size)

    def upload(self, target: DeviceBuffer, source: PinnedBuffer, size: int, stream: Stream) -> None:
        """See `protocol.CudaBackend`."""
        host = source.array[:size].ctypes.data
        _call(cu.cuMemcpyHtoDAsync, target.address, host, size, stream.handle)

    def download(
        self, target: PinnedBuffer, source: DeviceBuffer, size: int, stream: Stream
    ) -> None:
        """See `protocol.CudaBackend`."""
        host = target.array[:size].ctypes.data
        _call(cu.cuMemcpyDtoHAsync, host, source.address, size, stream.handle)

    def kernel(self, image: bytes, name: str) -> Kernel:
        """See `protocol.CudaBackend`."""
        return _Kernel(image, name)

    def close(self) -> None:
        """See `protocol.CudaBackend`."""
        _call(cu.cuDevicePrimaryCtxRelease, self._device)


def open_cuda() -> CudaBindings:
    """The first GPU. Raises BackendError when CUDA does not start."""
    return CudaBindings()


def _call(function: Any, *arguments: Any) -> Any:
    """What a driver call gives. It answers (error,) or (error, value)."""
    error, *values = function(*arguments)
    if error != cu.CUresult.CUDA_SUCCESS:
        raise refused(function.__name__, error.name)
    return values[0] if values else None


class _Stream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.handle = int(stream)

    def synchronize(self) -> None:
        _call(cu.cuStreamSynchronize, self._stream)

    def close(self) -> None:
        _call(cu.cuStreamDestroy, self._stream)


class _Event:
    def __init__(self, event: Any) -> None:
        self._event = event

    def record(self, stream: Stream) -> None:
        _call(cu.cuEventRecord, self._event, stream.handle)

    def synchronize(self) -> None:
        _call(cu.cuEventSynchronize, self._event)

    def close(self) -> None:
        _call(cu.cuEventDestroy, self._event)


class _DeviceBuffer:
    def __init__(self, address: int) -> None:
        self.address = address

    def close(self) -> None:
        _call(cu.cuMemFree, self.address)


class _PinnedBuffer:
    def __init__(self, address: int, size: int) -> None:
        self._address = address
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * size).from_address(address)
        )

    def close(self) -> None:
        _call(cu.cuMemFreeHost, self._address)


class _Kernel:
    def __init__(self, image: bytes, name: str) -> None:
        # CUDA reads it during the call alone
        self._module = _call(cu.cuModuleLoadData, np.frombuffer(image, np.uint8).ctypes.data)
        self._function = _call(cu.cuModuleGetFunction, self._module, name.encode())

    def launch(
        self, grid: Size, block: Size, arguments: Sequence[np.generic], stream: Stream
    ) -> None:
        boxed = [np.array(argument) for argument in arguments]
        places = np.array([argument.ctypes.data for argument in boxed], np.uint64)
        shared_bytes, extra = 0, 0
        _call(
            cu.cuLaunchKernel,
            self._function,
            *grid,
            *block,
            shared_bytes,
            stream.handle,
            places.ctypes.data,
            extra,
        )

    def close(self) -> None:
        _call(cu.cuModuleUnload, self._module)
