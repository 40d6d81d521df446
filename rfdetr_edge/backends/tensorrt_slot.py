"""The memory of one run of an engine: of each tensor, a host's and a device's side."""

from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

from numpy.typing import NDArray

from rfdetr_edge.backends import TensorSpec
from rfdetr_edge.cuda.protocol import CudaBackend, DeviceBuffer, Event, PinnedBuffer


@dataclass(frozen=True, slots=True)
class Buffer:
    """One tensor of a slot, for the largest batch."""

    spec: TensorSpec
    host: PinnedBuffer
    device: DeviceBuffer

    def view(self, count: int) -> NDArray[Any]:
        """The host's side as `count` images."""
        shape = (count, *image_shape(self.spec))
        return self.host.array[: self.size(count)].view(self.spec.dtype).reshape(shape)

    def size(self, count: int) -> int:
        """Bytes of `count` images."""
        return count * _image_bytes(self.spec)


@dataclass(frozen=True, slots=True)
class Slot:
    """What one run needs for itself. done: recorded behind the last copy of a run."""

    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    done: Event

    @property
    def addresses(self) -> dict[str, int]:
        """Name of a tensor -> where the GPU has it."""
        buffers = (*self.inputs, *self.outputs)
        return {buffer.spec.name: buffer.device.address for buffer in buffers}


def make_slot(
    cuda: CudaBackend,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    largest: int,
    made: ExitStack,
) -> Slot:
    """largest: number of images of a run. made: gets what gives each part back."""

    def buffer(spec: TensorSpec) -> Buffer:
        size = largest * _image_bytes(spec)
        device = cuda.device_buffer(size)
        made.callback(device.close)
        host = cuda.pinned_buffer(size)
        made.callback(host.close)
        return Buffer(spec, host, device)

    filled, given = tuple(map(buffer, inputs)), tuple(map(buffer, outputs))
    done = cuda.event()
    made.callback(done.close)
    return Slot(filled, given, done)


def _image_bytes(spec: TensorSpec) -> int:
    return spec.dtype.itemsize * prod(image_shape(spec))


def image_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Of one image, of which an engine leaves no size open."""
    return tuple(size or 0 for size in spec.shape[1:])
