"""From Python to the driver, with fake_libcuda.c as the driver; and hosts that have none."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rfdetr_edge import BackendUnavailable, demo
from rfdetr_edge.cuda import choice, driver

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
# what a graphics card's own driver must not answer in these tests
ABSENT = "libcuda-of-nobody.so.1"
DRIVERLESS = f"""
import sys
from rfdetr_edge.cuda import driver
driver._LIBRARY = {ABSENT!r}
from rfdetr_edge.cli import main
code = main(sys.argv[1:])
assert not {{"tensorrt", "tensorrt_rtx", "pycuda", "cuda"}} & set(sys.modules)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory):
    """The folder with the library."""
    return build_fake(tmp_path_factory.mktemp("driver"))


def build_fake(folder, more=()):
    """more: names of functions that only have to be there."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler (cc)")
    stubs = folder / "stubs.c"
    stubs.write_text("".join(f"int {name}(void) {{ return 801; }}\n" for name in more) + "\n")
    library = folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-Wall", f"-Wl,-soname,{library.name}", "-o", library]
    sources = [TESTS / "fake_libcuda.c", stubs]
    subprocess.run([*command, *sources, "-ldl", "-lpthread"], check=True, timeout=60)
    return folder


def run_python(folder, *arguments, python=sys.executable, **environment):
    """A process that finds the library of `folder` in the place of the driver."""
    return subprocess.run(
        [python, "-X", "faulthandler", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_cuda_bindings_give_all_of_the_protocol(fake_driver):
    pytest.importorskip("cuda.bindings")
    done = run_python(fake_driver, TESTS / "cuda_walk.py", "rfdetr_edge.cuda.cudabindings")
    assert (done.stderr, done.stdout) == ("", "retained 0 live 0 depth 0\n")


@pytest.mark.slow
def test_the_script_builds_pycuda_which_gives_all_of_the_protocol(tmp_path):
    """Without a GPU, a driver and cuRAND; nearly three minutes on a core of its own."""
    if not (Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include/cuda.h").is_file():
        pytest.skip("no GPU toolkit: CUDA's headers are not installed")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    python = tmp_path / "venv/bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, "numpy", "pytest"], check=True, timeout=600)
    script = ROOT / "docs/build_pycuda.sh"
    subprocess.run([script, python], check=True, timeout=3000)
    (module,) = (tmp_path / "venv/lib").glob("python*/site-packages/pycuda/_driver*.so")
    needed = subprocess.run(
        ["nm", "-D", "--undefined-only", module], check=True, capture_output=True, text=True
    ).stdout
    own = re.findall(r"^int (cu\w+)\(", (TESTS / "fake_libcuda.c").read_text(), re.MULTILINE)
    more = sorted(set(re.findall(r" U (cu\w+)", needed)) - set(own))
    folder = build_fake(tmp_path, more)
    assert (
        "libcuda.so.1"
        in subprocess.run(
            ["readelf", "-d", module], check=True, capture_output=True, text=True
        ).stdout
    )
    done = run_python(folder, TESTS / "cuda_walk.py", "rfdetr_edge.cuda.pycuda", python=python)
    assert (done.stderr, done.stdout) == ("", "retained 1 live 0 depth 0\n")


def test_a_driver_is_asked_for_its_gpus(fake_driver):
    program = "from rfdetr_edge.cuda.driver import *; print(probe_driver())"
    done = run_python(fake_driver, "-c", program, FAKE_CUDA_GPUS="2")
    gpus = ", ".join(f"Gpu(name='Fake {n}', sm='87', integrated=True)" for n in range(2))
    assert done.stdout == f"Driver(cuda='12.6', gpus=({gpus}))\n"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"FAKE_CUDA_INIT": "100"},
            r"cuInit gave CUDA_ERROR_NO_DEVICE \(100\); look at nvidia-smi",
        ),
        ({"FAKE_CUDA_GPUS": "0"}, "shows no GPU; look at nvidia-smi"),
    ],
)
def test_a_driver_without_a_gpu_says_so(fake_driver, environment, said):
    program = "from rfdetr_edge.cuda.driver import *; probe_driver()"
    done = run_python(fake_driver, "-c", program, **environment)
    assert done.returncode == 1
    assert re.search(f"BackendUnavailable: .*{said}", done.stderr)


def test_no_driver_is_one_error(monkeypatch):
    monkeypatch.setattr(driver, "_LIBRARY", ABSENT)
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver here .*run the \.onnx"):
        driver.probe_driver()


@pytest.fixture
def engine(tmp_path):
    """An engine of the fakes, with its record."""
    fakes = pytest.importorskip("fake_tensorrt")
    graphs = pytest.importorskip("graphs")
    path = tmp_path / "model.engine"
    document = graphs.metadata().to_json()
    onnx = graphs.save_detector(tmp_path / "model.onnx")
    return fakes.save_engine(path, onnx, requested="fp16", metadata_json=document)


def test_an_engine_on_a_host_without_a_driver_is_one_line_and_no_crash(tmp_path, engine):
    """A bare TensorRT runtime would take the process down here."""
    arguments = [demo.photo_paths()[0], "--model", engine]
    done = run_python(tmp_path, "-c", DRIVERLESS, "predict", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("rfdetr-edge: error: there is no NVIDIA driver here")


def test_info_tells_what_the_record_of_an_engine_says_without_a_driver(tmp_path, engine):
    done = run_python(tmp_path, "-c", DRIVERLESS, "info", engine)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line[:11].rstrip(): line[12:] for line in done.stdout.splitlines()}
    assert rows["runs on"] == "sm_87 (Orin) with tensorrt 10.3.0.30, CUDA 12.6, driver 540.4.0"
    assert rows["batch"] == "1 to 4, best 2"
    assert rows["precision"] == "fp16 asked for; layers: 3 Float"
    assert rows["built"].endswith(" in 1 s")
    assert rows["variant"].startswith("tiny, detection")
    done = run_python(tmp_path, "-c", DRIVERLESS, "info", "--json", engine)
    said = json.loads(done.stdout)
    assert (said["provider"], said["inputs"], said["outputs"]) == ("tensorrt", None, None)
    assert said["engine"]["batch"] == [1, 2, 4]
    assert said["engine"]["gpu"] == "Orin"
    engine.write_bytes(engine.read_bytes() + b"more")
    done = run_python(tmp_path, "-c", DRIVERLESS, "info", engine)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not the engine that its .json describes" in done.stderr


def test_without_both_libraries_the_error_names_both_extras(monkeypatch):
    for module in ("rfdetr_edge.cuda.pycuda", "rfdetr_edge.cuda.cudabindings"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for library in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendUnavailable) as raised:
        choice.open_cuda()
    for text in ("rfdetr-edge[tensorrt]", "rfdetr-edge[cuda]", "docs/build_pycuda.sh"):
        assert text in str(raised.value)


def test_cuda_bindings_serve_where_pycuda_does_not_load(fake_driver):
    pytest.importorskip("cuda.bindings")
    program = (
        "import sys; sys.modules['pycuda'] = None\n"
        "from rfdetr_edge.cuda.choice import open_cuda\n"
        "print(type(open_cuda()).__name__)"
    )
    assert run_python(fake_driver, "-c", program).stdout == "CudaBindings\n"
