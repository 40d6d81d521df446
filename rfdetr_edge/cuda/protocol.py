"""What a session needs of CUDA, small enough for two libraries and a fake to give it.

The first GPU and its primary context, which TensorRT uses as well; streams, events, device memory,
page-locked host memory, copies that do not wait, and kernels. Every member but `activated` has to
be called inside `activated()`, on any thread. Each raises BackendError when CUDA refuses.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.errors import BackendError

Size = tuple[int, int, int]


class Stream(Protocol):
    """Work that the GPU does in order. handle: the CUstream, as TensorRT takes it."""

    @property
    def handle(self) -> int:
        """The CUstream as a number."""

    def synchronize(self) -> None:
        """Waits until all of it is done."""

    def close(self) -> None:
        """Gives it back."""


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Puts the mark behind what the stream holds now."""

    def synchronize(self) -> None:
        """Waits until the stream has come to the mark."""

    def close(self) -> None:
        """Gives it back."""


class DeviceBuffer(Protocol):
    """Memory of the GPU."""

    @property
    def address(self) -> int:
        """Where it begins; aligned to 256 bytes."""

    def close(self) -> None:
        """Gives it back."""


class PinnedBuffer(Protocol):
    """Page-locked host memory, which the GPU reads and writes by itself."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """Its bytes; not to be touched between a copy's start and the synchronisation after it."""

    def close(self) -> None:
        """Gives it back; `array` must not be used any more."""


class Kernel(Protocol):
    """A function that runs on the GPU."""

    def launch(
        self, grid: Size, block: Size, arguments: Sequence[np.generic], stream: Stream
    ) -> None:
        """Puts one call behind what the stream holds.

        arguments: of exactly the types that the function declares; addresses as uint64.
        """

    def close(self) -> None:
        """Unloads the module it came from."""


class CudaBackend(Protocol):
    """The first GPU, through one of the libraries."""

    def activated(self) -> AbstractContextManager[None]:
        """The GPU's primary context is the calling thread's own inside the block."""

    def stream(self) -> Stream:
        """A new stream, which does not wait for the default one."""

    def event(self) -> Event:
        """A new event."""

    def device_buffer(self, size: int) -> DeviceBuffer:
        """Memory for `size` bytes, uninitialised."""

    def pinned_buffer(self, size: int) -> PinnedBuffer:
        """Page-locked memory for `size` bytes, uninitialised."""

    def upload(self, target: DeviceBuffer, source: PinnedBuffer, size: int, stream: Stream) -> None:
        """Puts a copy of the first `size` bytes to the GPU behind what the stream holds."""

    def download(
        self, target: PinnedBuffer, source: DeviceBuffer, size: int, stream: Stream
    ) -> None:
        """Puts a copy of the first `size` bytes from the GPU behind what the stream holds."""

    def kernel(self, image: bytes, name: str) -> Kernel:
        """A function of a compiled module (cubin, or PTX that ends in a zero byte)."""

    def close(self) -> None:
        """Lets the primary context go, outside of `activated`; what was made of it goes first."""


def refused(call: str, reason: Any) -> BackendError:
    """The error for a call that CUDA refused. reason: with the name of CUDA's error in it."""
    remedy = "look at nvidia-smi and at dmesg"
    if "OUT_OF_MEMORY" in str(reason).upper() or "OUT OF MEMORY" in str(reason).upper():
        remedy = (
            "the GPU's memory is full: close other programs on it, or build the engine for smaller "
            "batches"
        )
    return BackendError(f"CUDA refused {call}: {reason}; {remedy}")
