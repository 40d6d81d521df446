"""The runtime's calls to the real TensorRT-RTX, as far as they go without a GPU."""

import subprocess
import sys

import pytest

trt = pytest.importorskip("tensorrt_rtx")

PROGRAM = """
import sys
import tensorrt_rtx
from rfdetr_edge.backends.tensorrt_engine import Engine
from rfdetr_edge.errors import BackendError
for plan in (b"", b"vtrt", b"garbage" * 1000):
    try:
        Engine(tensorrt_rtx, plan, "bad.engine")
    except BackendError as error:
        print(error)
"""


def test_a_plan_that_is_none_is_refused_with_what_the_real_logger_heard():
    """In a process of its own: with another TensorRT this very call has crashed."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("bad.engine does not load: ")
        assert "(TensorRT: " in line
        assert "told its logger nothing" not in line


def test_every_member_of_the_fakes_is_one_of_the_real_library():
    fakes = pytest.importorskip("fake_tensorrt")
    module = fakes.fake_module(fakes.FakeCuda())
    names = {name for name in vars(module) if not name.startswith("_")}
    assert names <= set(dir(trt))
    assert hasattr(trt, "__version__")
    for fake, real in (
        (module.Runtime, trt.Runtime),
        (module.DataType, trt.DataType),
        (module.TensorIOMode, trt.TensorIOMode),
        (module.TensorLocation, trt.TensorLocation),
        (module.TensorFormat, trt.TensorFormat),
        (module.ILogger, trt.ILogger),
        (module._Engine, trt.ICudaEngine),
        (module._Context, trt.IExecutionContext),
    ):
        missing = {name for name in vars(fake) if not name.startswith("_")} - set(dir(real))
        assert missing == set(), real
