"""Preprocessing on the GPU: a frame goes up as bytes, once, and becomes the input tensor there.

Equals `rfdetr_edge.preprocess` to within 1e-4 (preprocess.cu says how). Nothing of it has run on a
GPU yet.
"""

import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
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

_Size = tuple[int, int]


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


def check_frame(image: NDArray[Any]) -> None:
    """Raises InputError unless the kernel takes it: (h, w, 3) uint8, RGB."""
    check_image(image)
    if image.dtype != np.uint8:
        raise InputError(
            f"preprocessing on the GPU takes images of uint8, not of {image.dtype}; convert them "
            "by (image * 255).round().astype('uint8'), or leave it to the CPU"
        )


@dataclass(frozen=True, slots=True)
class _Tables:
    """What frames of one size need beside their bytes.

    packed: first and weights of the rows, then of the columns, one behind the other. starts: where
    each of the four begins in it. taps: rows and columns that a pixel of the tensor is made of.
    """

    packed: NDArray[np.uint8]
    starts: tuple[int, ...]
    taps: _Size


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Room for the tables and the bytes of a frame behind them, on both sides."""

    host: PinnedBuffer
    device: DeviceBuffer


class DevicePreprocessor:
    """The kernel and its memory; all inside `cuda.activated()`, by one thread at a time."""

    def __init__(self, cuda: CudaBackend, spec: InputSpec, image: bytes) -> None:
        """image: the compiled kernel, e.g. of `compile_kernel`."""
        self._cuda = cuda
        self._spec = spec
        self._made = ExitStack()
        self._buffers: _Buffers | None = None
        self._kernel = cuda.kernel(image, _NAME)
        self._uploaded = cuda.event()
        std = np.array(spec.std)
        scale, shift = 1 / (255 * std), np.array(spec.mean) / std
        self._colours = [np.float32(value) for value in (*scale, *shift)]

    def enqueue(self, image: NDArray[Any], address: int, stream: Stream) -> None:
        """Puts one frame's way into the tensor behind what the stream holds.

        image: as `check_frame` wants it; BGR as the view [..., ::-1]. It is copied before this
        returns. address: of float32 (3, H, W) on the GPU.
        """
        height, width = self._spec.resolution
        size = image.shape[0], image.shape[1]
        tables = _tables(size, self._spec.resolution, self._spec.antialias)
        begin, end = tables.packed.size, tables.packed.size + image.size
        buffers = self._room_for(end, stream)
        buffers.host.array[:begin] = tables.packed
        reverse = image.strides[2] < 0  # copied as it lies, since turning bytes around is slow
        frame = image[..., ::-1] if reverse else image
        np.copyto(buffers.host.array[begin:end].reshape(image.shape), frame)
        self._cuda.upload(buffers.device, buffers.host, end, stream)
        self._uploaded.record(stream)
        source = buffers.device.address
        places = (source + begin, address, *(source + start for start in tables.starts))
        numbers = (*tables.taps, size[1], height, width, int(reverse))
        arguments: list[np.generic] = [
            *(np.uint64(place) for place in places),
            *(np.int32(number) for number in numbers),
            *self._colours,
        ]
        grid = (-(-width // _BLOCK[0]), -(-height // _BLOCK[1]), 1)
        self._kernel.launch(grid, _BLOCK, arguments, stream)

    def close(self) -> None:
        """Gives all of it back; the stream must be done with it."""
        self._made.close()
        self._uploaded.close()
        self._kernel.close()

    def _room_for(self, size: int, stream: Stream) -> _Buffers:
        """Buffers of at least `size` bytes, ready to be written; they grow and never shrink."""
        if self._buffers is not None and size <= self._buffers.host.array.size:
            self._uploaded.synchronize()  # the frame before may still be on its way
            return self._buffers
        stream.synchronize()
        self._buffers = None
        self._made.close()
        device = self._cuda.device_buffer(size)
        self._made.callback(device.close)
        host = self._cuda.pinned_buffer(size)
        self._made.callback(host.close)
        self._buffers = _Buffers(host, device)
        return self._buffers


@lru_cache(maxsize=32)
def _tables(source: _Size, target: _Size, antialias: bool) -> _Tables:
    rows, columns = (axis_taps(*axis, antialias) for axis in zip(source, target, strict=True))
    parts = (rows.first, rows.weights, columns.first, columns.weights)
    packed = np.concatenate([part.ravel().view(np.uint8) for part in parts])
    starts = np.cumsum([0, *(part.nbytes for part in parts[:3])])
    taps = (rows.weights.shape[1], columns.weights.shape[1])
    return _Tables(packed, tuple(map(int, starts)), taps)
