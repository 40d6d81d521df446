"""Peers: the one that needs no other environment runs; how the others are called is checked."""

from pathlib import Path

import pytest

from benchmarks import against_peers
from benchmarks.contender import Contender, Running
from rfdetr_edge import Detector, demo
from rfdetr_edge.errors import BackendError, InputError

PHOTO = demo.photo_paths()[0]


def test_onnxruntime_by_hand_finds_what_we_find() -> None:
    options = {"path": str(demo.model_path()), "threads": 1}
    with Running(Contender("plain", "benchmarks.baselines.plain", options), PHOTO) as running:
        turn = running.turn(PHOTO)
        about = running.ask("about")
    assert list(turn.stages) == ["decode", "preprocess", "infer", "postprocess"]
    with Detector(demo.model_path()) as detector:
        ours = len(detector.predict(PHOTO))
    assert abs(turn.detections - ours) <= 1  # Pillow resizes to bytes
    assert about["settings"] == "threads 1, spinning"
    assert {"onnxruntime", "pillow"} <= set(about["versions"])
    assert about["scenarios"] == []


def test_peers_are_fed_alike(tmp_path: Path) -> None:
    weights, artifact = tmp_path / "nano.pth", tmp_path / "nano.onnx"
    predict, helper, plain = against_peers.peers(tmp_path / "venv", weights, artifact, 2)
    assert predict.options == {"checkpoint": str(weights), "threads": 2}
    assert helper.options == plain.options == {"path": str(artifact), "threads": 2}
    for one in (predict, helper, plain):
        assert one.python == tmp_path / "venv" / "bin" / "python"
        assert one.environment["OMP_NUM_THREADS"] == "2"
        module = Path(*one.module.split(".")).with_suffix(".py")
        assert (Path(against_peers.__file__).parents[1] / module).is_file()


def test_without_the_environment_the_script_that_makes_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"peer_env\.sh"):
        against_peers.upstream_artifact(tmp_path, tmp_path / "nano.pth", tmp_path)


def _venv(tmp_path: Path, script: str) -> Path:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return tmp_path / "venv"


def test_upstreams_export_is_found_or_missed(tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "nano.pth", tmp_path / "out"
    folder.mkdir()
    venv = _venv(tmp_path, 'test -f "$3" && touch "$4/rfdetr-nano.onnx"')
    with pytest.raises(InputError, match=r"nano\.pth: no such file"):
        against_peers.upstream_artifact(venv, checkpoint, folder)
    checkpoint.touch()
    found = against_peers.upstream_artifact(venv, checkpoint, folder)
    assert found == folder / "rfdetr-nano.onnx"
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(BackendError, match="upstream's export"):
        against_peers.upstream_artifact(venv, checkpoint, folder)
