"""Preprocessing on the GPU: a frame goes up as bytes, once, and becomes the input tensor there.

Equals `rfdetr_edge.preprocess` to within 1e-4 (preprocess.cu says how). No session uses it yet:
nothing of it has run on a GPU.
"""

import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.cuda.protocol import CudaBackend, DeviceBuffer, PinnedBuffer, Stream
from rfdetr_edge.errors import BackendError, BackendUnavailable, InputError
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import axis_taps, check_image

SOURCE = Path(__file__).with_name("preprocess.cu")
_NAME = "preprocess"
_TOOLKIT = "/usr/local/cuda/bin"
_BLOCK = (32, 8, 1)


def compile_kernel(sm: str) -> bytes:
    """The kernel for GPUs of one compute capability, such as "87", by the toolkit's nvcc.

    Raises BackendUnavailable without nvcc, BackendError when it cannot compile for that GPU.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=_TOOLKIT)
    if nvcc is None:
        raise BackendUnavailable(
            f"nvcc is neither on the PATH nor in {_TOOLKIT}; install the CUDA toolkit, or leave "
            "preprocessing to the CPU"
        )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "preprocess.cubin"
        command = [nvcc, "-cubin", f"-arch=sm_{sm}", "-o", str(cubin), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendError(
                f"{nvcc} cannot compile for sm_{sm}: {done.stderr.strip()}; use the CUDA toolkit "
                "that belongs to this GPU"
            )
        return cubin.read_bytes()


@dataclass(frozen=True, slots=True)
class _Source:
    """What frames of one size need.

    tables: first and weights of the rows, then of the columns, one behind the other, and at
    `addresses` on the GPU. taps: rows and columns that a pixel of the tensor is made of.
    """

    size: tuple[int, int]
    host: PinnedBuffer
    device: DeviceBuffer
    tables: PinnedBuffer
    addresses: tuple[int, int, int, int]
    taps: tuple[int, int]


class DevicePreprocessor:
    """The kernel and its memory; all inside `cuda.activated()`, by one thread at a time."""

    def __init__(self, cuda: CudaBackend, spec: InputSpec, image: bytes) -> None:
        """image: the compiled kernel, e.g. of `compile_kernel`."""
        self._cuda = cuda
        self._spec = spec
        self._kernel = cuda.kernel(image, _NAME)
        self._uploaded = cuda.event()
        self._source: _Source | None = None
        self._made = ExitStack()
        std = np.array(spec.std)
        scale, shift = 1 / (255 * std), np.array(spec.mean) / std
        self._colours = [np.float32(value) for value in (*scale, *shift)]

    def enqueue(self, image: NDArray[Any], address: int, stream: Stream) -> None:
        """Puts one frame's way into the tensor behind what the stream holds.

        image: (h, w, 3) uint8 RGB; BGR as the view [..., ::-1]. It is copied before this returns.
        address: of float32 (3, H, W) on the GPU. Raises InputError for another kind of image.
        """
        check_image(image)
        if image.dtype != np.uint8:
            raise InputError(f"the GPU takes frames of uint8, not of {image.dtype}")
        source = self._for_size(image.shape[:2], stream)
        reverse = image.strides[2] < 0  # copied as it lies, since turning bytes around is slow
        frame = image[..., ::-1] if reverse else image
        np.copyto(source.host.array.reshape(image.shape), frame)
        self._cuda.upload(source.device, source.host, source.host.array.size, stream)
        self._uploaded.record(stream)
        height, width = self._spec.resolution
        grid = (-(-width // _BLOCK[0]), -(-height // _BLOCK[1]), 1)
        places = (source.device.address, address, *source.addresses)
        numbers = (*source.taps, image.shape[1], height, width, int(reverse))
        arguments: list[np.generic] = [
            *(np.uint64(place) for place in places),
            *(np.int32(number) for number in numbers),
            *self._colours,
        ]
        self._kernel.launch(grid, _BLOCK, arguments, stream)

    def close(self) -> None:
        """Gives all of it back; the stream must be done with it."""
        self._made.close()
        self._uploaded.close()
        self._kernel.close()

    def _for_size(self, size: tuple[int, ...], stream: Stream) -> _Source:
        """Buffers and tables, ready to be written; made anew when frames change their size."""
        if self._source is not None and self._source.size == size:
            self._uploaded.synchronize()  # the frame before may still be on its way
            return self._source
        if self._source is not None:
            stream.synchronize()
            self._made.close()
            self._source = None
        self._source = self._make(size[0], size[1], stream)
        return self._source

    def _make(self, height: int, width: int, stream: Stream) -> _Source:
        axes = zip((height, width), self._spec.resolution, strict=True)
        rows, columns = (axis_taps(*axis, self._spec.antialias) for axis in axes)
        parts = (rows.first, rows.weights, columns.first, columns.weights)
        packed = np.concatenate([part.ravel().view(np.uint8) for part in parts])
        device_tables = self._cuda.device_buffer(packed.size)
        self._made.callback(device_tables.close)
        tables = self._cuda.pinned_buffer(packed.size)
        self._made.callback(tables.close)
        device = self._cuda.device_buffer(height * width * 3)
        self._made.callback(device.close)
        host = self._cuda.pinned_buffer(height * width * 3)
        self._made.callback(host.close)
        tables.array[:] = packed
        self._cuda.upload(device_tables, tables, packed.size, stream)
        starts = np.cumsum([0, *(part.nbytes for part in parts[:3])]) + device_tables.address
        first, second, third, fourth = map(int, starts)
        taps = (rows.weights.shape[1], columns.weights.shape[1])
        return _Source((height, width), host, device, tables, (first, second, third, fourth), taps)
