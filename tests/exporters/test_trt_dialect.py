"""Which TensorRT is used, which is refused and why, and the command lines of each."""

import re
import sys
from pathlib import Path

import pytest

from exporters.trt.dialect import DIALECTS, dialect_of, installed
from exporters.trt.options import EngineOptions
from exporters.trt.trtexec import commands
from rfdetr_edge.cli import main
from rfdetr_edge.demo import model_path
from rfdetr_edge.errors import BackendError, BackendUnavailable, InputError

_IMAGE = ("input", (1, 3, 384, 384))
_OPEN = ("input", (-1, 3, 384, 384))


@pytest.mark.parametrize(
    ("family", "version", "names"),
    [
        ("tensorrt", "10.3.0", "TensorRT 10.3 to 10.x"),
        ("tensorrt", "10.16.1.11", "TensorRT 10.3 to 10.x"),
        ("tensorrt", "11.0.0.114", "TensorRT 11"),
        ("tensorrt", "11.4.1", "TensorRT 11"),
        ("tensorrt-rtx", "1.7.1.116", "TensorRT-RTX 1.7 and newer"),
        ("tensorrt-rtx", "1.10.0.1", "TensorRT-RTX 1.7 and newer"),
    ],
)
def test_a_version_has_its_dialect(family: str, version: str, names: str) -> None:
    assert dialect_of(family, version).names == names


@pytest.mark.parametrize(
    ("family", "version", "message"),
    [
        ("tensorrt", "8.5.2", "too old: its half precision is known to be wrong for RF-DETR"),
        ("tensorrt", "8.6.1.6", "cannot build strongly typed networks; use 10.3 or newer"),
        ("tensorrt", "9.2.0", "too old: its half precision"),
        ("tensorrt", "10.0.1", "too old: what of it is used was never held against its API"),
        ("tensorrt", "10.2.0", "JetPack 6.1 has 10.3"),
        ("tensorrt", "12.0.0", "newer than this rfdetr-edge knows .from 10.3 to below 12.; update"),
        ("tensorrt-rtx", "1.6.1.120", "too old: it was never tried; use 1.7 or newer: pip"),
        ("tensorrt-rtx", "2.0.0", "newer than this rfdetr-edge knows"),
        ("tensorrt", "unknown", "cannot be understood: install all of TensorRT again"),
    ],
)
def test_a_version_of_no_dialect_is_refused_with_the_reason(
    family: str, version: str, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        dialect_of(family, version)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are found before those that are installed."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # so that what was there comes back
        del sys.modules[name]
    return tmp_path


def test_tensorrt_is_preferred_to_the_rtx_one(place: Path) -> None:
    (place / "tensorrt.py").write_text("__version__ = '10.3.0'")
    (place / "tensorrt_rtx.py").write_text("__version__ = '1.7.1.116'")
    assert str(installed()) == "TensorRT 10.3.0"
    assert str(installed("tensorrt-rtx")) == "TensorRT-RTX 1.7.1.116"


def test_the_rtx_one_is_taken_where_it_is_alone(place: Path) -> None:
    (place / "tensorrt_rtx.py").write_text("__version__ = '1.7.1.116'")
    assert installed().dialect.family == "tensorrt-rtx"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
            r"tensorrt does not load \(libnvinfer.*: install all of TensorRT again",
        ),
        (
            "import tensorrt_bindings_that_are_not_there",
            r"tensorrt is installed in pieces \(.*: install all of TensorRT again",
        ),
        ("__version__ = '8.6.1'", "tensorrt 8.6.1 is too old: .*; use 10.3 or newer"),
    ],
)
def test_a_tensorrt_that_cannot_be_used_is_passed_over_for_an_rtx_one_that_can(
    text: str,
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (place / "tensorrt.py").write_text(text)
    (place / "tensorrt_rtx.py").write_text("__version__ = '1.7.1.116'")
    assert str(installed()) == "TensorRT-RTX 1.7.1.116"
    [warning] = caplog.messages
    assert re.match(f"TensorRT-RTX 1.7.1.116 is used: {message}", warning)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    for choice in ("auto", "tensorrt"):
        with pytest.raises(BackendError, match=message):
            installed(choice)


def test_a_tensorrt_that_is_missing_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"tensorrt is not installed: .* JetPack"):
        installed("tensorrt")


def test_a_missing_gpu_is_told_before_anything_is_made(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "tensorrt.py").write_text("__version__ = '10.3.0'")
    monkeypatch.setattr("exporters.trt.device.device", lambda: None)
    command = ["export", str(model_path()), "-o", str(place / "m.engine"), "--format", "engine"]
    assert main([*command, "--precision", "fp16"]) == 1
    message = "TensorRT 10.3.0 builds engines on the GPU that will run them, and there is none"
    assert message in capsys.readouterr().err
    assert {path.suffix for path in place.iterdir()} <= {".py", ""}


def test_there_is_a_command_for_each_dialect() -> None:
    text = commands(Path("m.onnx"), Path("m.engine"), _IMAGE, EngineOptions())
    lines = text.splitlines()
    assert lines[::2] == [f"# {row.names}" for row in DIALECTS]
    assert [line.split()[0] for line in lines[1::2]] == ["trtexec", "trtexec", "tensorrt_rtx"]
    assert ["--stronglyTyped" in line for line in lines[1::2]] == [True, False, False]
    assert not re.search(r"--(fp16|int8|best|calib)|Shapes|memPool|timing", text)
    assert text.count("--onnx=m.onnx --saveEngine=m.engine ") == 3


def test_a_command_has_all_options() -> None:
    options = EngineOptions(batch=(1, 2, 8), workspace=512, timing_cache=Path("my times"))
    text = commands(Path("m.onnx"), Path("m.engine"), _OPEN, options)
    for shape in ("--minShapes=input:1", "--optShapes=input:2", "--maxShapes=input:8"):
        assert text.count(f"{shape}x3x384x384 ") == 3
    assert text.count("--memPoolSize=workspace:512") == 3
    assert text.count("'--timingCacheFile=my times'") == 2  # RTX has none


@pytest.mark.parametrize(("choice", "count"), [("tensorrt", 2), ("tensorrt-rtx", 1)])
def test_a_family_has_its_commands_alone(choice: str, count: int) -> None:
    text = commands(Path("m.onnx"), Path("m.engine"), _IMAGE, EngineOptions(), choice)
    assert text.count("#") == count


def test_a_command_for_a_batch_that_the_graph_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="fixed at 1"):
        commands(Path("m.onnx"), Path("m.engine"), _IMAGE, EngineOptions(batch=(1, 2, 4)))
