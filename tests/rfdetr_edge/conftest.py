"""What tests of TensorRT share: the preprocessing kernel without a GPU, and a detector."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from graphs import metadata, save_detector

from rfdetr_edge.cuda.preprocess import SOURCE


@pytest.fixture
def onnx(tmp_path):
    """A detector of an open batch, for 64x96."""
    return save_detector(tmp_path / "model.onnx", batch=None, metadata_json=metadata().to_json())


@pytest.fixture(scope="session")
def kernel(tmp_path_factory):
    """What `FakeCuda` does for the kernel: the same source on this CPU."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler (g++)")
    library = tmp_path_factory.mktemp("kernel") / "kernel.so"
    command = ["g++", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", library]
    define = f'-DKERNEL="{SOURCE}"'
    subprocess.run(
        [*command, define, Path(__file__).parents[1] / "preprocess_host.cpp"],
        check=True,
        timeout=120,
    )
    run = ctypes.CDLL(str(library)).run
    kinds = {
        np.dtype(np.int32): ctypes.c_int,
        np.dtype(np.float32): ctypes.c_float,
    }

    def launch(cuda, grid, block, arguments):
        size = ctypes.c_int * 3
        given = [
            ctypes.c_void_p(cuda.pointer(int(argument)))
            if argument.dtype == np.uint64
            else kinds[argument.dtype](argument.item())
            for argument in arguments
        ]
        run(size(*grid), size(*block), *given)

    return launch
