"""The search for the fastest settings: what is kept, what is refused, and what is left behind."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import metadata, onnx, save_detector
from processes import run_cli

import benchmarks.tune
from benchmarks.tune import LEAST_RUNS, Outcome, Reference, tune
from rfdetr_edge import BackendError, Detector, InputError, demo
from rfdetr_edge.backends import Session, fitting_tuning, onnxrt, open_session
from rfdetr_edge.binding import bind
from rfdetr_edge.machine import this_machine
from rfdetr_edge.tuning import (
    Optimization,
    Stamp,
    Tuning,
    optimized_path,
    read_tuned,
    tuning_path,
)

Times = Callable[[Tuning], tuple[float, float]]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return save_detector(tmp_path / "model.onnx", metadata_json=metadata().to_json())


def run(artifact: Path, *, threads: int | None = 2, images: Path | None = None) -> Outcome:
    return tune(artifact, images, LEAST_RUNS, threads)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Times], None]:
    """Lets settings take the times that a function gives: seconds of a run, and of opening."""

    def use(times: Times) -> None:
        monkeypatch.setattr(benchmarks.tune, "_timed", lambda _, tuning, __: times(tuning))

    return use


def kept(outcome: Outcome) -> list[str]:
    return [trial.candidate for trial in outcome.trials if trial.kept]


def alike(_: Tuning) -> tuple[float, float]:
    return 1.0, 1.0


def test_what_is_written_fits_and_the_detector_uses_it(artifact: Path) -> None:
    before = artifact.read_bytes()
    outcome = run(artifact)
    assert read_tuned(artifact) == outcome.tuned
    assert fitting_tuning(artifact) == outcome.tuned.tuning
    with Detector(artifact) as detector:
        assert len(detector.predict(demo.photo_paths()[0], threshold=0.0)) == 20
    assert artifact.read_bytes() == before
    written = {path.name for path in artifact.parent.iterdir()}
    assert written - {"model.tuned.onnx"} == {"model.onnx", "model.onnx.tuned.json"}
    assert ("model.tuned.onnx" in written) == (outcome.tuned.tuning.optimized is not None)


def test_every_setting_is_tried_and_its_figures_are_kept(artifact: Path) -> None:
    trials = json.loads(json.dumps(run(artifact).tuned.figures))["trials"]
    names = [trial["candidate"] for trial in trials]
    assert names[0] == "threads 1"
    assert names[-4:] == ["no arena", "optimization extended", "optimization basic", "saved model"]
    for trial in trials:
        assert trial["difference"] is None
        for times in (trial["run"], trial["opening"]):
            assert 0 < times["low"] <= times["high"]
            assert times["ratio"] == pytest.approx(times["candidate_ms"] / times["best_ms"])


def test_there_is_never_more_than_one_session(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would share threads and memory with the one that is measured."""
    alive: list[Session] = []
    opened: list[Tuning | None] = []

    class Counted:
        def __init__(self, session: Session) -> None:
            self._session = session
            self.inputs, self.outputs, self.run = session.inputs, session.outputs, session.run
            self.metadata_json, self.provider = session.metadata_json, session.provider
            assert alive == []
            alive.append(session)

        def close(self) -> None:
            alive.remove(self._session)
            self._session.close()

    def count(path: Path, *, provider: str, tuning: Tuning) -> Counted:
        opened.append(tuning)
        return Counted(open_session(path, provider=provider, tuning=tuning))

    def save(path: Path, optimization: Optimization, target: Path) -> None:
        assert alive == []
        onnxrt.save_optimized(path, optimization, target)

    monkeypatch.setattr(benchmarks.tune, "open_session", count)
    monkeypatch.setattr(benchmarks.tune, "save_optimized", save)
    run(artifact)
    assert alive == []
    assert len(opened) > 2 * LEAST_RUNS // benchmarks.tune.BLOCK
    assert sum(tuning is not None and tuning.spinning for tuning in opened) > 10


def test_settings_that_are_faster_are_kept_and_build_on_each_other(
    artifact: Path, pretend: Callable[[Times], None]
) -> None:
    def times(tuning: Tuning) -> tuple[float, float]:
        run = 1.0 if tuning.threads == 1 else 2.0
        run *= 1.0 if tuning.arena else 0.9
        run *= 0.9 if tuning.optimization == "basic" else 1.0
        return run, 1.0

    pretend(times)
    outcome = run(artifact)
    assert kept(outcome) == ["threads 1", "no arena", "optimization basic"]
    assert outcome.tuned.tuning == Tuning(threads=1, arena=False, optimization="basic")
    assert outcome.last is not None
    assert outcome.last.run is not None
    assert outcome.last.run.ratio == pytest.approx(0.405)
    assert "no spinning" not in [trial.candidate for trial in outcome.trials]


def test_an_interval_that_says_nothing_changes_nothing(
    artifact: Path, pretend: Callable[[Times], None]
) -> None:
    pretend(alike)
    outcome = run(artifact, threads=None)
    assert outcome.last is None
    assert (kept(outcome), outcome.tuned.tuning) == ([], Tuning())
    assert not optimized_path(artifact).exists()
    assert "defaults are kept" in str(outcome)
    assert fitting_tuning(artifact) == Tuning()
    counts = [trial.candidate for trial in outcome.trials if "threads" in trial.candidate]
    assert counts == [f"threads {count + 1}" for count in range(this_machine().cores)]


def test_at_most_the_threads_that_are_allowed_are_used(
    artifact: Path, pretend: Callable[[Times], None]
) -> None:
    used: set[int | None] = set()

    def times(tuning: Tuning) -> tuple[float, float]:
        used.add(tuning.threads)
        return 1.0, 1.0

    pretend(times)
    assert run(artifact, threads=3).tuned.tuning == Tuning(threads=3)
    assert used == {1, 2, 3}


@pytest.mark.parametrize(
    ("run_seconds", "opening", "used"),
    [(1.0, 0.5, True), (1.2, 0.5, False), (1.0, 1.0, False)],
    ids=["opens faster", "runs slower", "no gain"],
)
def test_a_saved_model_is_kept_if_it_opens_faster_and_runs_no_slower(
    artifact: Path,
    pretend: Callable[[Times], None],
    run_seconds: float,
    opening: float,
    used: bool,
) -> None:
    pretend(lambda tuning: (run_seconds, opening) if tuning.optimized else (1.0, 1.0))
    outcome = run(artifact, threads=None)
    saved = optimized_path(artifact)
    assert saved.exists() == used
    assert outcome.tuned.tuning == Tuning(optimized=saved.name if used else None)
    assert outcome.tuned.optimized == (Stamp.of(saved) if used else None)
    assert fitting_tuning(artifact) == outcome.tuned.tuning
    with Detector(artifact) as detector:
        assert len(detector.predict(demo.photo_paths()[0], threshold=0.0)) == 20


def test_settings_that_are_slower_together_are_dropped(
    artifact: Path, pretend: Callable[[Times], None]
) -> None:
    seconds: Mapping[Tuning, float] = {
        Tuning(): 1.0,
        Tuning(threads=1): 0.9,
        Tuning(threads=1, arena=False): 0.8,
    }
    calls: list[Tuning] = []

    def times(tuning: Tuning) -> tuple[float, float]:
        calls.append(tuning)
        # the machine is another one at the end, when the best meets the defaults again
        late = calls.count(Tuning()) > LEAST_RUNS // benchmarks.tune.BLOCK
        return (2.0 if late and tuning != Tuning() else seconds.get(tuning, 3.0)), 1.0

    pretend(times)
    outcome = run(artifact, threads=None)
    assert kept(outcome) == ["threads 1", "no arena"]
    assert outcome.tuned.tuning == Tuning()
    assert outcome.last is not None
    assert not outcome.last.kept
    assert "together slower than ONNX Runtime's defaults" in str(outcome)


def scaled(artifact: Path, factor: float) -> Path:
    """The same model with class weights that are larger by a factor."""
    model = onnx.load(artifact)
    for tensor in model.graph.initializer:
        if tensor.name == "to_scores":
            weights = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    path = artifact.with_name("scaled.onnx")
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("factor", "same"), [(1 + 1e-5, True), (1 + 1e-3, False)])
def test_a_setting_with_other_results_is_refused(
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend: Callable[[Times], None],
    factor: float,
    same: bool,
) -> None:
    other = scaled(artifact, factor)

    def save(_: Path, optimization: Optimization, target: Path) -> None:
        onnxrt.save_optimized(other, optimization, target)

    monkeypatch.setattr(benchmarks.tune, "save_optimized", save)
    pretend(lambda tuning: (0.1, 0.1) if tuning.optimized else (1.0, 1.0))
    outcome = run(artifact)
    assert kept(outcome) == (["saved model"] if same else [])
    assert ("refused: labels differs by" in str(outcome)) != same
    assert optimized_path(artifact).exists() == same
    assert outcome.tuned.tuning.threads == 2


def test_results_are_the_same_when_the_same_pairs_are_selected(artifact: Path) -> None:
    session = open_session(artifact)
    binding = bind(session, None, None)
    labels = np.linspace(1, 2, 24 * 4, dtype=np.float32).reshape(1, 24, 4)
    dets = np.full((1, 24, 4), 0.5, np.float32)
    cut_off = labels.size - binding.metadata.num_select
    labels.flat[cut_off] = labels.flat[cut_off - 1] + np.float32(1e-5)
    wanted = {"dets": dets, "labels": labels}
    reference = Reference(binding, [{}], [wanted])
    assert reference.difference([wanted]) is None
    tied = labels.copy()
    tied.flat[cut_off] -= np.float32(2e-5)
    assert reference.difference([{"dets": dets, "labels": tied}]) == (
        "other pairs of query and class are selected"
    )
    broken = np.full_like(labels, np.nan)
    assert "labels differs" in str(reference.difference([{"dets": dets, "labels": broken}]))
    moved = {"dets": dets + np.float32(0.01), "labels": labels}
    assert "dets differs by 1.0e-02" in str(reference.difference([moved]))


@pytest.mark.parametrize(
    "options",
    [
        {"batch": None},
        {"batch": 2},
        {"metadata_json": None},
        {"masks": "masks", "metadata_json": metadata(task="segmentation").to_json()},
    ],
    ids=["open batch", "batch of two", "no metadata", "masks"],
)
def test_every_kind_of_artifact_can_be_tuned(
    tmp_path: Path, pretend: Callable[[Times], None], options: dict[str, Any]
) -> None:
    pretend(alike)
    artifact = save_detector(
        tmp_path / "m.onnx", **{"metadata_json": metadata().to_json(), **options}
    )
    assert all(trial.difference is None for trial in run(artifact).trials)


def test_the_images_of_a_folder_are_used(artifact: Path, pretend: Callable[[Times], None]) -> None:
    pretend(alike)
    photos = demo.photo_paths("segmentation")[0].parent
    assert run(artifact, images=photos).tuned.figures["images"] == 3
    with pytest.raises(InputError, match="is no folder of images"):
        run(artifact, images=artifact)


def test_a_model_that_was_saved_before_goes_when_it_no_longer_helps(
    artifact: Path, pretend: Callable[[Times], None]
) -> None:
    pretend(lambda tuning: (1.0, 0.5 if tuning.optimized else 1.0))
    assert run(artifact).tuned.optimized is not None
    pretend(alike)
    assert run(artifact).tuned.optimized is None
    assert {path.name for path in artifact.parent.iterdir()} == {
        "model.onnx",
        "model.onnx.tuned.json",
    }


def test_a_file_of_the_user_is_never_overwritten(artifact: Path) -> None:
    own = save_detector(optimized_path(artifact), metadata_json=metadata().to_json())
    before = own.read_bytes()
    with pytest.raises(InputError, match=r"model\.tuned\.onnx is no copy that `tune` made"):
        run(artifact)
    assert own.read_bytes() == before
    assert not tuning_path(artifact).exists()


def test_a_broken_output_is_an_error(artifact: Path) -> None:
    with pytest.raises(BackendError, match="NaN or infinity"):
        run(scaled(artifact, float("nan")))


def test_the_command_prints_what_was_found(artifact: Path) -> None:
    done = run_cli("tune", artifact, "--runs", 30, "--threads", 1, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("times of the best so far")
    assert any(line.startswith("optimization basic     run ") for line in lines)
    assert lines[-1] == f"written: {tuning_path(artifact)}"


@pytest.mark.parametrize(
    ("name", "options", "code", "message"),
    [
        ("nowhere.onnx", [], 2, "nowhere.onnx: no such file or folder"),
        ("model.onnx", ["--runs", "29"], 2, "at least 30 runs, not 29"),
        ("model.onnx", ["--threads", "5000"], 2, "threads must be 1 to 1024, not 5000"),
        ("model.onnx", ["--images", "nowhere"], 2, "nowhere is no folder of images"),
        ("text.onnx", [], 1, "text.onnx is no ONNX file"),
        ("text.tflite", [], 2, "tune finds settings of ONNX Runtime"),
        ("text.bin", [], 1, "no backend runs .bin files"),
        (".", [], 1, "no backend runs suffixless files"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(
    artifact: Path, name: str, options: list[str], code: int, message: str
) -> None:
    for text in ("text.onnx", "text.tflite", "text.bin"):
        (artifact.parent / text).write_text("no model\n" * 20)
    before = sorted(artifact.parent.iterdir())
    done = run_cli("tune", artifact.parent / name, *options, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert message in line
    assert sorted(artifact.parent.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_said_at_once(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied", str(artifact.parent))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(InputError, match=r"cannot write beside .*: Permission denied; copy it"):
        run(artifact)


def test_a_full_disk_leaves_nothing_behind(artifact: Path) -> None:
    limit = artifact.stat().st_size // 2
    done = run_cli("tune", artifact, "--runs", 30, file_limit=limit, stdout=subprocess.PIPE)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot save" in line
    assert [path.name for path in artifact.parent.iterdir()] == ["model.onnx"]


def test_a_machine_without_the_library_names_its_extra(artifact: Path) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None; "
        f"from rfdetr_edge.cli import main; sys.exit(main(['tune', {str(artifact)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "rfdetr-edge: error: onnxruntime is not installed: pip install 'rfdetr-edge[onnx]'"
    ]
