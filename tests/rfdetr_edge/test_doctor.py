import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_cli

import rfdetr_edge
from rfdetr_edge import BackendUnavailable, doctor
from rfdetr_edge.cuda.driver import Driver, Gpu

ROOT = str(Path(rfdetr_edge.__file__).parents[1])


def diagnose(folder):
    """The doctor's report with `folder` on the search path, behind what is installed."""
    path = os.pathsep.join([ROOT, str(folder)])
    return run_cli("doctor", env={"PYTHONPATH": path}, stdout=subprocess.PIPE)


def diagnose_alone(folder):
    """The report's lines in a process that finds nothing but NumPy, our package and `folder`."""
    numpy = Path(sys.modules["numpy"].__file__).parent
    for package in (numpy, numpy.with_name("numpy.libs"), Path(ROOT) / "rfdetr_edge"):
        if package.exists():
            (folder / package.name).symlink_to(package)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "rfdetr_edge", "doctor"],
        env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout.splitlines()


def install(folder, name):
    """What pip leaves behind of a distribution, as far as Python's own records go."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def test_the_report_names_versions_and_extras():
    found = {finding.subject: finding for finding in doctor.examine()}
    assert found["Python"].detail.startswith(".".join(map(str, sys.version_info[:3])))
    assert "CPUExecutionProvider" in found["ONNX Runtime"].detail
    assert str(Path(sys.prefix)) in found["OpenCV"].detail
    extras = {"tflite", "eval", "supervision", "export", "tflite-export", "train"}
    assert {f"extra {extra}" for extra in extras} <= set(found)
    assert not [f for f in found.values() if f.level == "wrong" and f.subject != "embedded model"]


def test_doubled_opencv_is_found_and_the_fix_leaves_one(tmp_path):
    for name in ("opencv-python", "opencv_contrib_python"):
        install(tmp_path, name)
    done = diagnose(tmp_path)
    assert done.returncode == 1
    assert "overwrite each other's files" in done.stdout
    fix = next(line for line in done.stdout.splitlines() if "pip uninstall -y opencv" in line)
    uninstall, _, install_one = fix.partition("&&")
    assert {"opencv-python", "opencv-contrib-python"} <= set(uninstall.split())
    assert install_one.split()[:2] == ["pip", "install"]
    assert len(install_one.split()) == 3


def test_doubled_onnxruntime_is_found_and_the_fix_keeps_the_gpu():
    names = {"onnxruntime", "onnxruntime-gpu", "numpy"}
    (finding,) = doctor.doubled_distributions(
        "ONNX Runtime", doctor.ONNXRUNTIME, {Path("a"): names}
    )
    assert finding.level == "wrong"
    assert finding.fix == (
        "pip uninstall -y onnxruntime-gpu onnxruntime && pip install onnxruntime-gpu"
    )
    apart = {Path("a"): {"onnxruntime"}, Path("b"): {"onnxruntime-gpu"}}
    assert not doctor.doubled_distributions("ONNX Runtime", doctor.ONNXRUNTIME, apart)


def hidden(path, installed):
    return doctor.hidden_copies("OpenCV", "cv2", doctor.OPENCV, path, installed)


@pytest.mark.parametrize("layout", ["cv2/__init__.py", "cv2.cpython-311-aarch64-linux-gnu.so"])
def test_a_pip_opencv_that_hides_the_systems_own_is_found(tmp_path, layout):
    pip_copy, system = tmp_path / "venv", tmp_path / "system"
    for file in (pip_copy / "cv2" / "__init__.py", system / layout):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    path = [str(pip_copy), str(system), "", str(pip_copy)]
    (finding,) = hidden(path, {pip_copy: {"opencv-python-headless"}})
    assert finding.level == "wrong"
    assert str(pip_copy) in finding.detail
    assert str(system) in finding.detail
    assert finding.fix == "pip uninstall -y opencv-python-headless"
    assert not hidden([str(system)], {pip_copy: {"opencv-python-headless"}})
    assert not hidden(path, {system: {"opencv-python"}})  # put in front on purpose


def test_a_venvs_onnxruntime_that_hides_the_systems_gpu_build_is_found(tmp_path):
    """As in a venv with system packages on a Jetson, whose GPU build is not on PyPI."""
    front, system = tmp_path / "front", tmp_path / "system"
    for folder in (front, system):
        (folder / "onnxruntime").mkdir(parents=True)
        (folder / "onnxruntime" / "__init__.py").touch()
    (finding,) = doctor.hidden_copies(
        "ONNX Runtime",
        "onnxruntime",
        doctor.ONNXRUNTIME,
        [str(front), str(system)],
        {front: {"onnxruntime"}, system: {"onnxruntime-gpu"}},
    )
    assert finding.detail == f"the pip copy in {front} hides the one in {system}"
    assert finding.fix == "pip uninstall -y onnxruntime"


def test_a_library_in_pieces_is_found(tmp_path):
    """Removing onnxruntime takes files from onnxruntime-gpu, whose records stay."""
    (tmp_path / "onnxruntime").mkdir()
    install(tmp_path, "onnxruntime-gpu")
    lines = diagnose_alone(tmp_path)
    found = lines.index("wrong   ONNX Runtime: installed in pieces")
    remedy = "pip install --force-reinstall --no-deps onnxruntime-gpu"
    assert lines[found + 1] == f"        -> {remedy}"
    assert "onnxruntime is installed in pieces" in lines[-2]


def test_a_missing_extra_is_no_fault_but_missing_opencv_is(tmp_path):
    lines = diagnose_alone(tmp_path)
    assert "wrong   OpenCV: not installed" in lines
    assert "        -> pip install 'rfdetr-edge[opencv]'" in lines
    assert "absent  extra supervision: without supervision" in lines
    assert "wrong   ONNX Runtime: not installed" in lines


def test_a_missing_onnxruntime_is_no_fault_where_tensorrt_runs_engines(tmp_path):
    (tmp_path / "tensorrt.py").touch()
    lines = diagnose_alone(tmp_path)
    found = lines.index("absent  ONNX Runtime: not installed; TensorRT runs engines")
    assert "pip install --no-deps onnxruntime" in lines[found + 1]
    assert "absent  embedded model: needs ONNX Runtime" in lines
    assert [line for line in lines if line.startswith("wrong")] == ["wrong   OpenCV: not installed"]


def test_what_engines_need_is_told_and_tensorrt_not_imported(monkeypatch):
    for module in ("tensorrt", "tensorrt_rtx", "pycuda", "cuda"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    orin = Driver("12.6", (Gpu("Orin", "87", integrated=True),))
    monkeypatch.setattr(doctor, "probe_driver", lambda: orin)
    monkeypatch.setattr(doctor, "find_spec", lambda name: name in ("tensorrt", "pycuda") or None)
    monkeypatch.setattr(doctor, "version", {"tensorrt": "10.3.0", "pycuda": "2026.1"}.__getitem__)
    findings = doctor._tensorrt()
    assert [str(finding.detail) for finding in findings] == [
        "CUDA up to 12.6, Orin (sm_87)",
        "tensorrt 10.3.0",
        "pycuda 2026.1",
    ]
    assert not {"tensorrt", "pycuda"} & set(sys.modules)


def test_a_namespace_that_others_share_is_not_the_library():
    assert doctor._is_there("email.message")
    assert not doctor._is_there("email.bindings")
    assert not doctor._is_there("no_such_package.bindings")


def test_a_host_without_a_driver_or_tensorrt_is_no_fault(monkeypatch):
    def absent():
        raise BackendUnavailable("there is no NVIDIA driver here")

    monkeypatch.setattr(doctor, "probe_driver", absent)
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    findings = doctor._tensorrt()
    assert [finding.level for finding in findings] == ["absent"] * 3
    assert [finding.detail for finding in findings] == [
        "there is no NVIDIA driver here",
        "without tensorrt and tensorrt_rtx",
        "without pycuda and cuda.bindings",
    ]
    assert "--system-site-packages" in findings[1].fix
    assert "rfdetr-edge[tensorrt]" in findings[2].fix


def test_the_embedded_model_detects():
    """Needs the embedded model."""
    found = {finding.subject: finding for finding in doctor.examine()}
    assert found["embedded model"].level == "ok"
    assert all(finding.level != "wrong" for finding in found.values())
