"""Engines built by TensorRT-RTX, which needs no GPU for it; what cannot be built, and why."""

import errno
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from checkpoints import save_filled
from graphs import metadata, save_detector
from processes import run_cli

from exporters.calibration import calibration_set
from exporters.inspection import inspected
from exporters.onnx_cleanup import cleaned
from exporters.onnx_export import OnnxOptions, export_onnx
from exporters.onnx_graph import replace_metadata
from exporters.onnx_precision.fp16 import to_fp16
from exporters.onnx_precision.int8 import calibrated
from exporters.onnx_precision.quantize import SCHEMES
from exporters.trt import build as building
from exporters.trt import engine as engines
from exporters.trt import monitor
from exporters.trt.build import build
from exporters.trt.device import Device, device
from exporters.trt.dialect import Installed, installed
from exporters.trt.engine import export_engine
from exporters.trt.graph_products import graph_products
from exporters.trt.inspector import inspect
from exporters.trt.log import checked, constructed
from exporters.trt.network import parse, products
from exporters.trt.options import EngineOptions
from exporters.trt.source import read_source
from rfdetr_edge.backends import open_session
from rfdetr_edge.backends.fake import FakeSession
from rfdetr_edge.cli import main
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.engine_record import read_record
from rfdetr_edge.errors import ArtifactError, BackendError, BackendUnavailable, InputError
from rfdetr_edge.files import file_sha256
from rfdetr_edge.metadata import Precision, parse_metadata
from trainer.checkpoint import load_checkpoint

rtx = pytest.importorskip("tensorrt_rtx")

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_GPU = Device("Orin", "87", "12.6", "540.4.0")
_RANGE = EngineOptions(batch=(1, 2, 4))


@pytest.fixture(scope="module")
def tensorrt() -> Installed:
    return installed("tensorrt-rtx")


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tests on every machine."""
    monkeypatch.setattr(engines, "device", lambda: None)


def _detector(path: Path, precision: Precision, batch: int | None = 1) -> Path:
    """A small detector whose graph has the precision, and says so."""
    save_detector(path, batch=batch)
    graph = onnx.load(path)
    if precision == "fp16":
        graph = to_fp16(graph).model
    elif precision == "int8":
        _round_products(graph.graph)
    onnx.save(graph, path)
    replace_metadata(path, replace(metadata(), precision=precision))
    return path


def _round_products(graph: onnx.GraphProto) -> None:
    """Q/DQ around both factors of every MatMul."""
    make, weights = onnx.helper.make_node, {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "MatMul":
            data, weight = node.input
            values = onnx.numpy_helper.to_array(weights[weight])
            step = np.abs(values).max() / 127
            for name, array in {
                f"{weight}/whole": np.rint(values / step).astype(np.int8),
                f"{weight}/step": np.float32(step),
                f"{weight}/data_step": np.float32(3 / 127),
                f"{weight}/zero": np.int8(0),
            }.items():
                graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
            steps = [f"{weight}/data_step", f"{weight}/zero"]
            nodes += [
                make("QuantizeLinear", [data, *steps], [f"{weight}/rounded"]),
                make("DequantizeLinear", [f"{weight}/rounded", *steps], [f"{weight}/data"]),
                make(
                    "DequantizeLinear",
                    [f"{weight}/whole", f"{weight}/step", f"{weight}/zero"],
                    [f"{weight}/restored"],
                ),
            ]
            node.input[:] = [f"{weight}/data", f"{weight}/restored"]
            graph.initializer.remove(weights[weight])
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _lowered(path: Path, precision: Precision) -> Path:
    """Rewrites an FP32 artifact without asking what it costs."""
    said = read_source(path).metadata
    assert said is not None
    if precision == "fp16":
        onnx.save(to_fp16(cleaned(onnx.load(path))).model, path)
    elif precision == "int8":
        images = calibration_set(photo_paths(said.task))
        ready = calibrated(onnx.load(path), images, said.input, SCHEMES["tensorrt"])
        onnx.save(ready.quantized(ready.layers), path)
    replace_metadata(path, replace(said, precision=precision))
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 3, None])
def test_an_engine_is_built_and_its_record_says_of_what(
    batch: int | None, precision: Precision, tensorrt: Installed, tmp_path: Path
) -> None:
    source = _detector(tmp_path / "m.onnx", precision, batch)
    output = tmp_path / "m.engine"
    options = EngineOptions() if batch else _RANGE
    said = export_engine(read_source(source), output, tensorrt, precision, options)
    assert output.read_bytes()[:4] == b"vtrt"
    record = read_record(output)
    assert (record.engine_sha256, record.onnx_sha256) == (file_sha256(output), file_sha256(source))
    assert (record.family, record.version) == ("tensorrt-rtx", rtx.__version__)
    assert (record.gpu, record.sm, record.cuda, record.driver) == (None, None, None, None)
    assert (record.requested, record.inspected) == (precision, None)
    assert record.batch == ((batch,) * 3 if batch else (1, 2, 4))
    assert record.metadata is not None
    document = parse_metadata(record.metadata)
    assert (document.precision, document.provenance.verification) == (precision, "skipped")
    assert "built but not run: there is no GPU here" in said
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.engine", "m.engine.json"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_products_of_the_parsed_embedded_model_compute_in_the_precision(
    precision: Precision, tensorrt: Installed, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model_path().read_bytes())
    counts = products(tensorrt.module, parse(tensorrt, _lowered(path, precision)).definition)
    assert counts[precision] > 0.8 * sum(counts.values())
    assert set(counts) <= {precision, "fp32"}
    assert counts == graph_products(onnx.load(path))


def test_a_foreign_graph_is_built_without_metadata(tensorrt: Installed, tmp_path: Path) -> None:
    source = save_detector(tmp_path / "m.onnx")
    export_engine(read_source(source), tmp_path / "m.engine", tensorrt, "fp32", EngineOptions())
    assert read_record(tmp_path / "m.engine").metadata is None


def test_the_command_line_lowers_builds_and_keeps_the_onnx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tiny.engine"
    command = ["export", str(model_path()), "-o", str(output), "--format", "engine"]
    assert main([*command, "--precision", "fp16", "--dialect", "tensorrt-rtx"]) == 0
    made, built = capsys.readouterr().out.splitlines()
    assert made.startswith(f"{output}.onnx: ")
    assert "confident detections kept" in made
    assert built.startswith(f"{output}: fp16, batch 1, ")
    record = read_record(output)
    assert record.onnx_sha256 == file_sha256(tmp_path / "tiny.engine.onnx")
    assert inspected(onnx.load(tmp_path / "tiny.engine.onnx")).precision == "fp16"
    assert output.stat().st_size < 0.75 * 24.9e6  # of its FP32 engine


def test_an_artifact_keeps_its_precision_where_none_is_asked_for(tmp_path: Path) -> None:
    source = _detector(tmp_path / "m.onnx", "int8")
    command = ["export", str(source), "-o", str(tmp_path / "m.engine"), "--format", "engine"]
    assert main(command) == 0
    assert read_record(tmp_path / "m.engine").requested == "int8"
    assert not (tmp_path / "m.engine.onnx").exists()


def test_a_checkpoint_becomes_an_engine_for_a_range_of_batches(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tiny.engine"
    command = ["export", str(tiny_checkpoint), "-o", str(output), "--format", "engine"]
    shape = ["--shape", "96", "96", "--batch", "1,2,4"]
    assert main([*command, *shape, "--no-verify", "--print-trtexec"]) == 0
    commands = capsys.readouterr().out
    assert commands.count("--optShapes=input:2x3x96x96") == 3
    assert not output.exists()
    assert read_source(tmp_path / "tiny.engine.onnx").image == ("input", (-1, 3, 96, 96))


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (1, {"batch": (1, 2, 4)}, "fixed at 1, and cannot be 1,2,4"),
        (3, {"batch": (1, 1, 1)}, "fixed at 3"),
        (None, {}, "say --batch min,opt,max"),
        (1, {"timing_cache": Path("times")}, "leave --timing-cache out"),
    ],
)
def test_options_that_do_not_fit_are_named(
    batch: int | None, options: dict, message: str, tensorrt: Installed, tmp_path: Path
) -> None:
    source = read_source(_detector(tmp_path / "m.onnx", "fp32", batch))
    with pytest.raises(InputError, match=message):
        export_engine(source, tmp_path / "m.engine", tensorrt, "fp32", EngineOptions(**options))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": (0, 1, 2)}, "rising order, from 1, not 0,1,2"),
        ({"batch": (1, 4, 2)}, "rising order"),
        ({"workspace": 0}, "at least 1 MiB"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineOptions(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "engine", "--batch", "dynamic"], "say --batch min,opt,max"),
        (["--format", "engine", "--precision", "int8"], "needs images that fix its scales"),
        (["--format", "engine", "--precision", "int8-dynamic"], "TensorRT cannot run int8-dynamic"),
        (["--format", "engine", "--precision", "fp16", "--batch", "2,2,4"], "fixed at 1, and"),
        (["--format", "engine", "--max-drop", "1"], "--max-drop is for making an artifact of"),
        (["--format", "engine", "--opset", "18"], "--opset is for a checkpoint"),
        (["--format", "engine", "--target", "cpu"], "--target is for --format onnx"),
        (["--batch", "1,2,4"], "--batch min,opt,max is for --format engine"),
        (["--workspace", "100"], "--workspace is for --format engine"),
        (["--print-trtexec"], "--print-trtexec is for --format engine"),
    ],
)
def test_the_command_line_refuses_what_is_for_something_else(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix = "engine" if "engine" in arguments else "onnx"
    output = tmp_path / f"m.{suffix}"
    assert main(["export", str(model_path()), "-o", str(output), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_was_timed_is_kept_and_used_again(tensorrt: Installed, tmp_path: Path) -> None:
    # by TensorRT-RTX, which does nothing with it, and says so
    dialect = replace(tensorrt.dialect, keeps_timings=True)
    source = _detector(tmp_path / "m.onnx", "fp32")
    options = EngineOptions(timing_cache=tmp_path / "times")
    times = []
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match="no-ops in TensorRT-RTX"):
            build(replace(tensorrt, dialect=dialect), source, "fp32", options, has_gpu=False)
        times.append((tmp_path / "times").read_bytes())
    assert len(times[0]) > 100
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "times"}


def test_a_class_that_gives_no_object_is_named(tensorrt: Installed) -> None:
    module = tensorrt.module
    with pytest.raises(BackendError, match="TensorRT gives no OnnxParser"):
        constructed(module, module.OnnxParser, None)


@pytest.mark.parametrize("answer", [None, False])
def test_a_call_that_failed_is_named(answer: bool | None, tensorrt: Installed) -> None:
    with pytest.raises(BackendError, match="TensorRT could not do this"):
        checked(tensorrt.module, answer, "do this")
    assert checked(tensorrt.module, 0, "do this") == 0


def test_an_artifact_is_not_raised_to_fp32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _detector(tmp_path / "m.onnx", "fp16")
    command = ["export", str(source), "-o", str(tmp_path / "m.engine"), "--format", "engine"]
    assert main([*command, "--precision", "fp32"]) == 2
    assert "m.onnx is fp16; give the FP32 artifact it was made from" in capsys.readouterr().err


def test_a_source_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _detector(tmp_path / "m.engine.onnx", "fp32")
    before = source.read_bytes()
    command = ["export", str(source), "-o", str(tmp_path / "m.engine"), "--format", "engine"]
    assert main([*command, "--precision", "fp16"]) == 2
    assert "m.engine.onnx would be written over" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_unknown_operators_are_named_with_their_nodes(tensorrt: Installed, tmp_path: Path) -> None:
    path = save_detector(tmp_path / "m.onnx")
    model = onnx.load(path)
    for node, name in zip(model.graph.node[4:], ("the/odd/one", "another"), strict=True):
        node.op_type, node.domain, node.name = "Squash", "elsewhere", name
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    onnx.save(model, path)
    texts = r"(?s)cannot run .*\n  Squash the/odd/one: .*\n  Squash another: .*Squash"
    with pytest.raises(BackendError, match=texts):
        build(tensorrt, path, "fp32", EngineOptions(), has_gpu=False)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut_short_is_no_artifact(share: float, tmp_path: Path) -> None:
    whole = _detector(tmp_path / "m.onnx", "fp32").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ArtifactError, match=r"m\.onnx .*export or copy it again"):
        read_source(tmp_path / "m.onnx")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"m\.onnx cannot be read"):
        read_source(tmp_path / "m.onnx")


@pytest.mark.parametrize(("held", "asked"), [("fp32", "fp16"), ("fp16", "int8"), ("int8", "fp32")])
def test_another_precision_than_asked_for_is_an_error(
    held: Precision, asked: Precision, tensorrt: Installed, tmp_path: Path
) -> None:
    path = _detector(tmp_path / "m.onnx", held)
    with pytest.raises(ArtifactError, match=f"most of its weights are {held}, not {asked}"):
        export_engine(read_source(path), tmp_path / "m.engine", tensorrt, asked, EngineOptions())
    with pytest.raises(ArtifactError, match=f"the network of .* is not {asked}, but has .* {held}"):
        build(tensorrt, path, asked, EngineOptions(), has_gpu=False)


def test_metadata_that_says_another_precision_is_an_error(
    tensorrt: Installed, tmp_path: Path
) -> None:
    path = _detector(tmp_path / "m.onnx", "fp16")
    replace_metadata(path, metadata())
    with pytest.raises(ArtifactError, match="metadata says fp32, its graph holds fp16"):
        export_engine(read_source(path), tmp_path / "m.engine", tensorrt, "fp16", EngineOptions())


def test_a_full_disk_is_named_and_leaves_the_older_engine(tmp_path: Path) -> None:
    source = _detector(tmp_path / "m.onnx", "fp32")
    output = tmp_path / "m.engine"
    output.write_text("an older engine")
    command = ["export", source, "-o", output, "--format", "engine"]
    done = run_cli(*command, file_limit=5000)
    assert done.returncode == 1
    assert done.stderr.endswith(f"{output}: File too large\n")
    assert output.read_text() == "an older engine"
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.engine"}


def test_a_record_that_cannot_be_written_leaves_the_older_engine(
    tensorrt: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = _detector(tmp_path / "m.onnx", "fp32")
    output = tmp_path / "m.engine"
    output.write_text("an older engine")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        export_engine(read_source(source), output, tensorrt, "fp32", EngineOptions())
    assert output.read_text() == "an older engine"
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.engine"}


def test_ctrl_c_ends_a_build(
    tensorrt: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _detector(tmp_path / "m.onnx", "fp32")
    start = monitor.Phases.start
    before = signal.getsignal(signal.SIGINT)

    def interrupted(self: monitor.Phases, name: str, parent: str | None, steps: int) -> None:
        signal.raise_signal(signal.SIGINT)
        start(self, name, parent, steps)

    monkeypatch.setattr(monitor.Phases, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_engine(read_source(source), tmp_path / "m.engine", tensorrt, "fp32", EngineOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert signal.getsignal(signal.SIGINT) is before


def test_what_tensorrt_said_last_ends_the_message(tensorrt: Installed, tmp_path: Path) -> None:
    source = _detector(tmp_path / "m.onnx", "fp32")
    message = r"(?s)could not build .*; a larger --workspace may help\n  .*workspace limit"
    with pytest.raises(BackendError, match=message):
        build(tensorrt, source, "fp32", EngineOptions(workspace=1), has_gpu=False)


def test_a_workspace_that_is_large_enough_is_taken(tensorrt: Installed, tmp_path: Path) -> None:
    source = _detector(tmp_path / "m.onnx", "fp32")
    built = build(tensorrt, source, "fp32", EngineOptions(workspace=100), has_gpu=False)
    assert built.batch == (1, 1, 1)
    assert built.layers is None


def test_a_tensorrt_that_needs_a_gpu_says_so_without_one(
    tensorrt: Installed, tmp_path: Path
) -> None:
    dialect = replace(tensorrt.dialect, family="tensorrt", needs_gpu=True)
    source = _detector(tmp_path / "m.onnx", "fp32")
    with pytest.raises(BackendError, match="there is none here; build on the device"):
        build(replace(tensorrt, dialect=dialect), source, "fp32", EngineOptions(), has_gpu=False)


# What a GPU adds, with the two answers of one replaced: the inspector's, and the engine's outputs.


def _pretend_a_gpu(
    monkeypatch: pytest.MonkeyPatch, layers: Mapping[str, int], run: Callable | None = None
) -> None:
    def opened(path: Path, provider: str | None = None) -> object:
        if path.suffix == ".onnx":
            return open_session(path, provider=provider)
        record = read_record(path)  # as a backend does before it loads anything
        assert record.engine_sha256 == file_sha256(path)
        [source] = path.parent.glob("*.onnx")
        session = open_session(source)
        changed = run or (lambda outputs: outputs)
        return FakeSession(
            lambda feeds: changed(session.run(feeds)),
            session.inputs,
            session.outputs,
            record.metadata,
        )

    monkeypatch.setattr(engines, "device", lambda: _GPU)
    monkeypatch.setattr(engines, "open_session", opened)
    monkeypatch.setattr(engines, "open_cuda", lambda: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(building, "inspect", lambda *_: layers)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_that_was_run_and_found_equal_says_so(
    precision: Precision, tensorrt: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"fp32": {"Float": 9}, "fp16": {"Half": 7, "Float": 2}, "int8": {"Int8": 5}}[precision]
    _pretend_a_gpu(monkeypatch, layers)
    source = read_source(_detector(tmp_path / "m.onnx", precision))
    output = tmp_path / "m.engine"
    said = export_engine(source, output, tensorrt, precision, EngineOptions())
    assert " on 3 images" in said
    record = read_record(output)
    assert (record.gpu, record.cuda, record.driver) == ("Orin", "12.6", "540.4.0")
    assert record.sm is None  # TensorRT-RTX binds its engines to no GPU
    assert record.inspected == layers
    assert record.metadata is not None
    assert parse_metadata(record.metadata).provenance.verification == "passed"
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.engine", "m.engine.json"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_of_an_open_batch_is_run_with_its_smallest_and_largest(
    precision: Precision, tensorrt: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def noted(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.add(len(outputs["dets"]))
        return outputs

    _pretend_a_gpu(monkeypatch, {"fp32": {"Float": 9}, "fp16": {"Half": 7}}[precision], noted)
    source = read_source(_detector(tmp_path / "m.onnx", precision, None))
    options = EngineOptions(batch=(2, 3, 5))
    export_engine(source, tmp_path / "m.engine", tensorrt, precision, options)
    assert seen == {2, 5}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["another", "nan"])
def test_an_engine_that_finds_something_else_is_kept_as_rejected(
    kind: str,
    precision: Precision,
    tensorrt: Installed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shifted(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return outputs | {"labels": outputs["labels"] * (-1 if kind == "another" else np.nan)}

    _pretend_a_gpu(monkeypatch, {"fp32": {"Float": 9}, "fp16": {"Half": 7}}[precision], shifted)
    source = read_source(_detector(tmp_path / "m.onnx", precision))
    output = tmp_path / "m.engine"
    output.write_text("an older engine")
    found = r"(lost|kept)" if kind == "another" else "gave NaN or infinity"
    with pytest.raises(ArtifactError, match=rf"(?s)kept as .*m\.engine\.rejected: .*{found}"):
        export_engine(source, output, tensorrt, precision, EngineOptions())
    assert output.read_text() == "an older engine"
    kept = tmp_path / "m.engine.rejected"
    record = read_record(kept)
    assert (record.engine_sha256, record.gpu) == (file_sha256(kept), "Orin")
    assert record.metadata is not None
    assert parse_metadata(record.metadata).provenance.verification == "skipped"
    left = {"m.onnx", "m.engine", kept.name, f"{kept.name}.json"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_an_engine_that_could_not_be_compared_is_not_blamed(
    tensorrt: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise BackendUnavailable("pycuda is not installed")

    _pretend_a_gpu(monkeypatch, {"Float": 9}, absent)
    source = read_source(_detector(tmp_path / "m.onnx", "fp32"))
    with pytest.raises(BackendUnavailable, match="pycuda is not installed"):
        export_engine(source, tmp_path / "m.engine", tensorrt, "fp32", EngineOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.fixture
def plan(tensorrt: Installed, tmp_path: Path) -> Path:
    """An engine without a record, as trtexec leaves it, of the m.onnx beside it."""
    source = _detector(tmp_path / "m.onnx", "fp16", None)
    path = tmp_path / "m.engine"
    path.write_bytes(bytes(build(tensorrt, source, "fp16", _RANGE, has_gpu=False).plan))
    return path


def test_what_trtexec_built_gets_its_record_by_the_command_that_is_printed(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _pretend_a_gpu(monkeypatch, {"Half": 7, "Float": 2})
    before = plan.read_bytes()
    command = ["export", str(plan.with_name("m.onnx")), "-o", str(plan), "--format", "engine"]
    options = ["--batch", "1,2,4", "--dialect", "tensorrt-rtx", "--print-trtexec"]
    assert main([*command, *options]) == 0
    program, *printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (program, printed[-1]) == ("rfdetr-edge", "--adopt")
    assert main(printed) == 0
    assert f"{plan}: fp16, batch 1-2-4, " in capsys.readouterr().out
    record = read_record(plan)
    assert plan.read_bytes() == before
    assert (record.engine_sha256, record.batch) == (file_sha256(plan), (1, 2, 4))
    assert (record.inspected, record.build_seconds) == ({"Half": 7, "Float": 2}, None)
    assert record.metadata is not None
    assert parse_metadata(record.metadata).provenance.verification == "passed"
    assert {path.name for path in plan.parent.iterdir()} == {"m.onnx", plan.name, "m.engine.json"}


@pytest.mark.parametrize("fault", ["layers", "results", "no GPU"])
def test_an_engine_that_is_not_what_it_should_be_is_not_adopted(
    fault: str,
    plan: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = {"Float": 7} if fault == "layers" else {"Half": 7}
    _pretend_a_gpu(monkeypatch, layers, lambda outputs: outputs | {"labels": -outputs["labels"]})
    if fault == "no GPU":
        monkeypatch.setattr(engines, "device", lambda: None)
    before = plan.read_bytes()
    command = ["export", str(plan.with_name("m.onnx")), "-o", str(plan), "--format", "engine"]
    assert main([*command, "--batch", "1,2,4", "--dialect", "tensorrt-rtx", "--adopt"]) == 1
    said = {"layers": "is not fp16", "results": "engine.rejected: ", "no GPU": "where it will run"}
    assert said[fault] in capsys.readouterr().err
    assert plan.read_bytes() == before
    assert not plan.with_name("m.engine.json").exists()


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("m.onnx", ["--workspace", "9"], "--workspace is for building an engine"),
        ("m.onnx", ["--print-trtexec"], "--print-trtexec is for building an engine"),
        ("m.onnx", ["--precision", "int8"], "m.onnx is fp16; --adopt takes the .onnx that"),
        ("m.pth", [], "m.pth is no .onnx; --adopt takes that of the engine"),
        ("m.onnx", ["-o", "none.engine"], "none.engine is not there; build it with trtexec"),
    ],
)
def test_what_does_not_go_with_adopting_is_named(
    source: str,
    arguments: list[str],
    message: str,
    plan: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = plan.with_name(source)
    command = ["export", str(path), "-o", str(plan), "--format", "engine", "--batch", "1,2,4"]
    assert main([*command, "--adopt", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not plan.with_name("m.engine.json").exists()


BOARD = """
import sys
absent = ["torch", "cv2", "pycocotools", "onnxruntime", *sys.argv.pop().split()]
sys.modules.update(dict.fromkeys(absent))
from rfdetr_edge.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("options", "missing", "said"),
    [
        (["--no-verify"], "", None),
        ([], "", "--no-verify for an engine that was compared with nothing"),
        ([], "onnx", "onnx is not installed: pip install 'rfdetr-edge[engine]'"),
    ],
)
def test_a_board_needs_onnx_and_numpy_alone(
    options: list[str], missing: str, said: str | None, tmp_path: Path
) -> None:
    source, output = _detector(tmp_path / "m.onnx", "fp16"), tmp_path / "m.engine"
    command = ["export", source, "-o", output, "--format", "engine", *options, missing]
    done = subprocess.run(
        [sys.executable, "-c", BOARD, *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == (0 if said is None else 1)
    assert done.stderr.count("\n") == (0 if said is None else 1)
    assert output.exists() == (said is None)
    assert (said or "") in done.stderr


def test_onnx_runtime_is_missed_before_the_build(
    tensorrt: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_source(_detector(tmp_path / "m.onnx", "fp32"))
    _pretend_a_gpu(monkeypatch, {"Float": 9})
    monkeypatch.setattr("exporters.trt.source.find_spec", lambda _: None)
    monkeypatch.setattr(engines, "build", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(BackendUnavailable, match="pip install onnxruntime"):
        export_engine(source, tmp_path / "m.engine", tensorrt, "fp32", EngineOptions())


_SHAPES = tuple((size, 3, 64, 96) for size in (1, 2, 4))


@pytest.mark.parametrize("image", [None, ("input", _SHAPES)])
def test_an_engine_of_an_open_batch_is_asked_with_its_shape(image: tuple | None) -> None:
    """As TensorRT's documentation has it: without a context it tells no data types."""
    shapes = {}
    context = SimpleNamespace(set_input_shape=lambda *shape: shapes.update([shape]) or True)
    inspector = SimpleNamespace(execution_context=None)

    def report(_: str) -> str:
        known = inspector.execution_context is context
        kind = "Half" if known else "N/A due to dynamic shapes"
        return json.dumps({"Layers": [{"Outputs": [{"Format/Datatype": kind}]}]})

    inspector.get_engine_information = report
    engine = SimpleNamespace(
        create_engine_inspector=lambda: inspector,
        create_execution_context=lambda: context,
        get_tensor_profile_shape=lambda name, profile: list(_SHAPES),
    )
    module = ModuleType("tensorrt")
    vars(module).update(
        ILogger=rtx.ILogger,
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    fake = Installed(module, installed("tensorrt-rtx").dialect, "10.3.0")
    assert inspect(fake, b"plan", image) == ({"Half": 1} if image else {})
    assert shapes == ({"input": _SHAPES[1]} if image else {})
    if image:
        with pytest.raises(InputError, match="built for --batch 1,2,4"):
            inspect(fake, b"plan", ("input", (*_SHAPES[:2], (8, 3, 64, 96))))


@pytest.mark.parametrize(
    ("precision", "layers", "message"),
    [
        ("fp16", {"Float": 9}, r"the engine of .* is not fp16, but has 9 layers in fp32"),
        ("fp16", {"Float": 40, "Half": 2}, "is not fp16, but has 40 layers in fp32, 2 layers in"),
        ("int8", {"Float": 60, "Int8": 1}, "is not int8, but has 60 layers in fp32, 1 layers in"),
        ("fp32", {"Float": 60, "Half": 1}, "is not fp32, but has"),
        ("fp32", {}, "tells no data type of the engine"),
    ],
)
def test_an_engine_whose_layers_have_another_precision_is_not_handed_out(
    precision: Precision,
    layers: Mapping[str, int],
    message: str,
    tensorrt: Installed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _pretend_a_gpu(monkeypatch, layers)
    source = read_source(_detector(tmp_path / "m.onnx", precision))
    with pytest.raises(ArtifactError, match=message):
        export_engine(source, tmp_path / "m.engine", tensorrt, precision, EngineOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_an_engine_of_an_open_batch_is_inspected_for_its_range(
    tensorrt: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    _pretend_a_gpu(monkeypatch, {})
    monkeypatch.setattr(building, "inspect", lambda *given: seen.append(given[2]) or {"Float": 9})
    for name, batch, options in (("open", None, _RANGE), ("fixed", 1, EngineOptions())):
        source = _detector(tmp_path / f"{name}.onnx", "fp32", batch)
        build(tensorrt, source, "fp32", options, has_gpu=True)
    assert seen == [("input", _SHAPES), None]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_one_product_that_was_not_parsed_as_the_graph_says_is_an_error(
    precision: Precision, tensorrt: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_less(*given: object) -> Mapping[Precision, int]:
        found = products(*given)
        return {**found, precision: found[precision] - 1, "fp32": found["fp32"] + 1}

    path = _detector(tmp_path / "m.onnx", precision)
    monkeypatch.setattr(building, "products", one_less)
    with pytest.raises(ArtifactError, match=rf"layers in {precision}.* became .* in {precision}"):
        build(tensorrt, path, precision, EngineOptions(), has_gpu=False)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "Float"), ("fp16", "Half")])
def test_the_inspector_of_a_gpu_counts_layers(
    precision: Precision, kind: str, tensorrt: Installed, tmp_path: Path
) -> None:
    if device() is None:
        pytest.skip("no GPU")
    source = _detector(tmp_path / "m.onnx", precision)
    built = build(tensorrt, source, precision, EngineOptions(), has_gpu=True)
    assert built.layers is not None
    assert built.layers[kind] > 0


def test_an_engine_that_does_not_load_is_named_with_the_reason(tensorrt: Installed) -> None:
    with pytest.raises(BackendError, match=r"(?s)could not load the engine it built\n  .*Error"):
        inspect(tensorrt, b"vtrt, and nothing more")


@pytest.mark.slow  # 3 minutes
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, "dynamic"])
def test_nano_with_random_weights_is_built(
    batch: int | str, precision: Precision, tensorrt: Installed, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(save_filled(tmp_path / "nano.pth", "nano", 91, None))
    path = tmp_path / "nano.onnx"
    export_onnx(checkpoint, path, OnnxOptions(batch=batch), images=None)
    source = read_source(_lowered(path, precision))
    options = EngineOptions() if batch == 1 else _RANGE
    export_engine(source, tmp_path / "nano.engine", tensorrt, precision, options)
    record = read_record(tmp_path / "nano.engine")
    assert (record.requested, record.batch) == (precision, (1, 1, 1) if batch == 1 else (1, 2, 4))
