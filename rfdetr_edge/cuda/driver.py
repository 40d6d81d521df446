"""Whether there is an NVIDIA driver, and which GPUs it has, asked by ctypes alone.

Asked before TensorRT is touched: on a host without a driver TensorRT hands out a runtime that
crashes the process on its next call (TensorRT 11.4, lean runtime: exit by SIGSEGV).
"""

import ctypes
from dataclasses import dataclass

from rfdetr_edge.errors import BackendUnavailable

_LIBRARY = "libcuda.so.1"
# CUdevice_attribute of cuda.h
_INTEGRATED = 18
_MAJOR, _MINOR = 75, 76
_NAME_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Gpu:
    """sm: compute capability without its dot ("87"). integrated: shares memory with the CPU."""

    name: str
    sm: str
    integrated: bool


@dataclass(frozen=True, slots=True)
class Driver:
    """cuda: the newest CUDA that the driver runs ("12.6"). gpus: at least one."""

    cuda: str
    gpus: tuple[Gpu, ...]


def probe_driver() -> Driver:
    """Starts the driver and asks it.

    CUDA_VISIBLE_DEVICES chooses and orders the GPUs, as in every CUDA program. Raises
    BackendUnavailable without a driver, without a GPU, and when the driver does not start.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise BackendUnavailable(
            f"there is no NVIDIA driver here ({error}); install it, in a container start that with "
            "--gpus all (--runtime nvidia on a Jetson), or run the .onnx of the same model instead"
        ) from None
    _check(library, "cuInit", ctypes.c_uint(0))
    count = _number(library, "cuDeviceGetCount")
    if not count:
        raise BackendUnavailable(
            "the NVIDIA driver shows no GPU; look at nvidia-smi and at CUDA_VISIBLE_DEVICES"
        )
    version = _number(library, "cuDriverGetVersion")
    gpus = tuple(_gpu(library, index) for index in range(count))
    return Driver(f"{version // 1000}.{version % 1000 // 10}", gpus)


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device = _number(library, "cuDeviceGet", ctypes.c_int(index))
    name = ctypes.create_string_buffer(_NAME_LENGTH)
    _check(library, "cuDeviceGetName", name, ctypes.c_int(_NAME_LENGTH), ctypes.c_int(device))
    major, minor, integrated = (
        _number(library, "cuDeviceGetAttribute", ctypes.c_int(attribute), ctypes.c_int(device))
        for attribute in (_MAJOR, _MINOR, _INTEGRATED)
    )
    return Gpu(name.value.decode(errors="replace"), f"{major}{minor}", bool(integrated))


def _number(library: ctypes.CDLL, call: str, *arguments: object) -> int:
    """What a call writes through its first argument."""
    value = ctypes.c_int()
    _check(library, call, ctypes.byref(value), *arguments)
    return value.value


def _check(library: ctypes.CDLL, call: str, *arguments: object) -> None:
    code = library[call](*arguments)
    if code:
        name = ctypes.c_char_p()
        library["cuGetErrorName"](code, ctypes.byref(name))
        reason = (name.value or b"unknown").decode(errors="replace")
        raise BackendUnavailable(
            f"the NVIDIA driver does not start: {call} gave {reason} ({code}); look at nvidia-smi "
            "and at CUDA_VISIBLE_DEVICES"
        )
