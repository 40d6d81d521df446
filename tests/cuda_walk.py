"""Walks through every member of a `CudaBackend` with fake_libcuda.c in the driver's place.

A program of its own, since that library stays in a process: `cuda_walk.py MODULE`.
"""

import ctypes
import importlib
import sys
import threading

import numpy as np
import pytest

from rfdetr_edge.cuda.driver import Driver, Gpu, probe_driver
from rfdetr_edge.cuda.protocol import CudaBackend
from rfdetr_edge.errors import BackendError

COUNT = 1000


def round_trip(cuda: CudaBackend, value: float) -> None:
    """Up, through a kernel, and down again."""
    with cuda.activated():
        stream, event = cuda.stream(), cuda.event()
        device, host = cuda.device_buffer(4 * COUNT), cuda.pinned_buffer(4 * COUNT)
        kernel = cuda.kernel(b"fake module\0", "multiply")
        assert device.address % 256 == 0
        assert host.array.shape == (4 * COUNT,)
        numbers = host.array.view(np.float32)
        numbers[:] = value
        cuda.upload(device, host, 4 * COUNT, stream)
        event.record(stream)
        event.synchronize()  # `numbers` may be written again
        numbers[:] = 0
        arguments = [np.uint64(device.address), np.float32(2.5), np.int32(COUNT - 1)]
        kernel.launch((3, 2, 1), (32, 8, 1), arguments, stream)
        cuda.download(host, device, 4 * COUNT, stream)
        assert np.isnan(numbers).all(), "read before it was there"
        stream.synchronize()
        assert (numbers[:-1] == 2.5 * value).all()
        assert numbers[-1] == value
        for made in (kernel, host, device, event, stream):
            made.close()


def refused(cuda: CudaBackend) -> None:
    """What CUDA refuses is our error, with its name in it."""
    with cuda.activated():
        for call, said in (
            (lambda: cuda.device_buffer(2 << 30), "the GPU's memory is full"),
            (lambda: cuda.pinned_buffer(2 << 30), "the GPU's memory is full"),
            (lambda: cuda.kernel(b"no module\0", "multiply"), "cuModuleLoadData"),
        ):
            with pytest.raises(BackendError, match=said):
                call()
    with pytest.raises(BackendError, match="cuStreamCreate"):
        cuda.stream()  # outside of activated()


def walk(module: str) -> None:
    """All of it, on this thread, nested, and on others."""
    fake = ctypes.CDLL("libcuda.so.1")
    assert probe_driver() == Driver("12.6", (Gpu("Fake 0", "87", integrated=True),))
    adapter = importlib.import_module(module)
    cuda, other = adapter.open_cuda(), adapter.open_cuda()
    round_trip(cuda, 1.5)
    with cuda.activated(), cuda.activated():
        round_trip(other, 2.0)
    failures = []

    def work(value: float) -> None:
        try:
            for _ in range(20):
                round_trip(cuda, value)
            assert fake.fake_depth() == 0
        except Exception as error:  # noqa: BLE001  # told to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(float(value),)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    refused(cuda)
    assert (fake.fake_live(), fake.fake_depth()) == (0, 0)
    closing = threading.Thread(target=cuda.close)  # on another thread than it was made on
    closing.start()
    closing.join()
    round_trip(other, 3.0)
    other.close()
    print("retained", fake.fake_retained(), "live", fake.fake_live(), "depth", fake.fake_depth())  # noqa: T201


if __name__ == "__main__":
    walk(*sys.argv[1:])
