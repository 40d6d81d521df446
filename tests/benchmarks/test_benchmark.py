"""`rfdetr-edge benchmark` on the embedded model: real processes, few turns, no figure asserted."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import save_detector

from benchmarks.contender import Contender, Running, artifact_contenders
from benchmarks.measure import Plan, measure
from benchmarks.result import Report
from rfdetr_edge import demo
from rfdetr_edge.cli import main

MODEL, PHOTOS = demo.model_path(), demo.photo_paths()
RUNS = 3


@pytest.fixture(scope="module")
def report() -> Report:
    """The embedded model beside a contender that does nothing and knows no other scenario."""
    contenders = [
        *artifact_contenders([MODEL], 1),
        Contender("nothing", "benchmarks.nothing"),
    ]
    plan = Plan(PHOTOS, RUNS, fps=50.0, starts=2)
    advanced: list[None] = []
    found = measure(contenders, plan, advance=lambda: advanced.append(None))
    assert len(advanced) == plan.rounds == 2 * plan.warm_up + RUNS
    return found


def test_stages_add_up_to_the_whole(report: Report) -> None:
    model, nothing = report.results
    assert (
        list(model.stages)
        == ["decode", "preprocess", "infer", "postprocess"]
        == list(nothing.stages)
    )
    stages = np.sum([model.samples.stages[name] for name in model.stages], axis=0)
    total = np.array(model.samples.total)
    assert (stages <= total).all()
    assert np.median(total - stages) < 0.01 * np.median(total)
    assert model.stages["infer"].p50 > model.stages["postprocess"].p50
    assert model.detections > 5
    assert nothing.detections == 0


def test_starts_and_memory_are_its_own(report: Report) -> None:
    model, nothing = report.results
    assert len(model.starts) == len(nothing.starts) == 2
    for start in model.starts:
        assert start.cold_ms > start.import_ms + start.load_ms + start.first_ms
        assert min(start.import_ms, start.load_ms, start.first_ms) > 0
    if model.peak_mb is not None and nothing.peak_mb is not None:
        assert model.mb is not None
        assert model.peak_mb > model.mb + nothing.peak_mb
    assert nothing.mb is None


@pytest.mark.parametrize("runs", [1, 5])
def test_processes_share_the_rounds_and_take_turns_at_being_first(
    monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    started: list[str] = []

    class Noted(Running):
        def __init__(self, contender: Contender, first: Path) -> None:
            started.append(contender.name)
            super().__init__(contender, first)

    monkeypatch.setattr("benchmarks.measure.Running", Noted)
    contenders = [Contender(name, "benchmarks.nothing") for name in "abc"]
    found = measure(contenders, Plan(PHOTOS, runs, starts=2), advance=int)
    assert started == ["a", "b", "c", "b", "c", "a"]
    assert [one.latency.n for one in found.results] == [runs] * 3
    assert [len(one.starts) for one in found.results] == [2] * 3


def test_each_image_counts_as_often() -> None:
    assert [list(share) for share in Plan(PHOTOS, 5, starts=2).shares] == [[0, 1], [2, 3, 4]]
    assert [list(share) for share in Plan(PHOTOS, 1, starts=2).shares] == [[], [0]]


def test_only_what_a_contender_can_do_is_asked(report: Report) -> None:
    model, nothing = report.results
    assert model.pipelined_fps == pytest.approx(np.median(model.samples.pipelined_fps))
    assert model.pipelined_fps > 0
    assert model.camera is not None
    assert model.camera.arrived == RUNS == len(model.samples.ages) + model.camera.dropped
    assert nothing.pipelined_fps is None
    assert nothing.camera is None


def test_the_report_says_how_it_was_made(report: Report) -> None:
    assert report.settings["image_sizes"] == ["640x480"]
    settings = report.settings
    assert (settings["runs"], settings["processes"], settings["warm_up"]) == (RUNS, 2, 2)
    about = report.results[0].about
    assert (about["precision"], about["provider"], about["resolution"]) == (
        "fp32",
        "cpu",
        [384, 384],
    )
    assert about["settings"].startswith("threads 1, spinning")
    assert {"rfdetr-edge", "numpy", "onnxruntime"} <= set(about["versions"])
    assert report.overhead > 0
    assert report.machine["cores"] >= 1
    assert json.loads(report.to_json())["results"][0]["samples"]["total"]


def test_a_file_of_another_exporter_is_timed_without_its_classes(tmp_path: Path) -> None:
    [contender] = artifact_contenders([save_detector(tmp_path / "other.onnx")], 1)
    with Running(contender, PHOTOS[0]) as running:
        assert list(running.turn(PHOTOS[1]).stages)[-1] == "postprocess"
        assert running.ask("about")["precision"] is None


@pytest.fixture
def annotated(tmp_path: Path, photos: dict[str, Any]) -> Path:
    """The embedded photos with their boxes."""
    folder = tmp_path / "annotated"
    folder.mkdir()
    for path in PHOTOS:
        shutil.copy(path, folder)
    (folder / "_annotations.coco.json").write_text(json.dumps(photos))
    return folder


def test_the_command_writes_what_was_asked_for(
    tmp_path: Path, annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copy(MODEL, tmp_path / "copy.onnx"))
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "png")}
    options = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    options += ["--runs", "2", "--threads", "1", "--dataset", str(annotated)]
    assert main(["benchmark", str(MODEL), str(copy), "--images", str(annotated), *options]) == 0
    shown = capsys.readouterr().out
    assert "Accuracy" in shown
    document = json.loads(files["json"].read_text())
    first, second = document["results"]
    assert (first["name"], second["name"]) == (MODEL.name, "copy.onnx")
    assert first["accuracy"]["ap"] == second["accuracy"]["ap"] > 0.5
    assert (second["accuracy"]["drop"], first["accuracy"]["drop"]) == (0, None)
    assert first["accuracy"]["images"] == len(PHOTOS)
    assert second["ratio"]["low"] <= second["ratio"]["value"] <= second["ratio"]["high"]
    assert document["settings"]["dataset"] == str(annotated)
    assert files["html"].read_text().startswith("<!doctype html>")
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    model = str(MODEL)
    for arguments, message in (
        ([str(tmp_path / "none.onnx")], "none.onnx: no such file"),
        ([model, str(broken)], "broken.onnx"),
        ([str(broken), "--dataset", str(tmp_path)], "no _annotations.coco.json"),
        ([model, "--images", str(tmp_path / "none")], "no such folder"),
        ([model, "--images", str(tmp_path / "empty")], "holds no images"),
        ([model, "--json", str(tmp_path / "none" / "a.json")], "cannot write"),
        ([model, "--html", model], "cannot write"),
        ([model, "--png", str(tmp_path / "a.png")], "--dataset"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main(["benchmark", *arguments, "--runs", "1"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert error.startswith("rfdetr-edge: error: ")
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    "option", [["--runs", "0"], ["--threads", "0"], ["--camera", "0"], ["--camera", "nan"]]
)
def test_numbers_that_make_no_sense_are_refused(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", str(MODEL), *option])
    assert stopped.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.jpg").write_bytes(PHOTOS[0].read_bytes()[:3000])
    assert main(["benchmark", str(MODEL), "--images", str(tmp_path), "--runs", "1"]) == 2
    assert "cut.jpg is a truncated JPEG" in capsys.readouterr().err
