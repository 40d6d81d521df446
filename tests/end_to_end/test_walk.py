"""The walk of the README, from photos to an artifact that detects, each step a command."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import save_filled
from processes import run_cli

import trainer
from rfdetr_edge.demo import photo_paths

ANNOTATIONS = Path(__file__).parent.parent / "photos.coco.json"


@pytest.fixture
def dataset(tmp_path) -> Path:
    """The three embedded photos as every split: enough to walk, too few to learn."""
    for split in ("train", "valid", "test"):
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        for photo in photo_paths():
            shutil.copy(photo, folder)
        shutil.copy(ANNOTATIONS, folder / "_annotations.coco.json")
    return tmp_path / "photos"


def _run(*arguments) -> subprocess.CompletedProcess[str]:
    done = run_cli(*arguments, stdout=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_from_photos_to_detections(dataset, tmp_path):
    run = tmp_path / "run"
    recipe = Path(trainer.__file__).parent / "recipes" / "tiny.yaml"
    options = "--epochs 2 --resolution 96 --batch-size 3 --num-workers 0 --eval-interval 2"
    options += " --set warm_resolution=64 --set amp_dtype=null"
    given = ("--config", recipe, "--dataset", dataset, "--output", run, *options.split())
    trained = _run("train", *given)
    checkpoint = Path(trained.stdout.splitlines()[-1])
    assert checkpoint == run / "checkpoint_best_total.pth"

    model = tmp_path / "cells.onnx"
    exported = _run("export", checkpoint, "-o", model, "--images", dataset / "valid")
    assert "1 - IoU" in exported.stdout

    verified = _run("verify", checkpoint, model)
    assert "equals" in verified.stdout

    information = json.loads(_run("info", model, "--json").stdout)
    assert information["metadata"]["input"]["resolution"] == [96, 96]

    lines = _run("predict", dataset / "test", "--model", model, "--threshold", 0, "--json", "-")
    records = [json.loads(line) for line in lines.stdout.splitlines()]
    assert len(records) == 3
    names = {row["class_name"] for record in records for row in record["detections"]}
    assert names <= {"RBC", "WBC", "Platelets", "__background__"}

    split = dataset / "test"
    annotations = split / "_annotations.coco.json"
    scored = _run("evaluate", model, "--annotations", annotations, "--images", split, "--json")
    assert 0 <= json.loads(scored.stdout)["ap50"] <= 1


def test_training_settings_that_cannot_be_used_are_named(dataset, tmp_path):
    options = ("--model", "tiny", "--dataset", dataset, "--resolution", 100)
    done = run_cli("train", *options, stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert "the nearest are 96 and 128" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "missing/x.onnx"), "missing is no folder"),
        (("-o", "x.onnx", "--images", "missing"), "missing is no folder of images"),
        (("-o", "x.pth"), "must end in .onnx"),
        (("-o", "x.onnx", "--batch", 10**7), "not enough memory"),
    ],
)
def test_an_export_that_cannot_be_made_is_one_error(tmp_path, options, message):
    checkpoint = save_filled(tmp_path / "tiny.pth", "tiny", 4, None)
    done = run_cli("export", checkpoint, *options, cwd=tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pth"]


@pytest.mark.parametrize("limit", [10**5, 10**7])
def test_an_export_onto_a_full_disk_leaves_the_older_file(tmp_path, limit):
    checkpoint = save_filled(tmp_path / "tiny.pth", "tiny", 4, None)
    model = tmp_path / "model.onnx"
    model.write_text("an older artifact")
    done = run_cli("export", checkpoint, "-o", model, file_limit=limit, stdout=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == f"rfdetr-edge: error: {model}: File too large\n"
    assert model.read_text() == "an older artifact"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pickled_payload_is_not_run_by_export(tmp_path):
    canary = tmp_path / "canary"
    script = (
        "import pickle, sys, pathlib, torch\n"
        "class Payload:\n"
        "    def __reduce__(self):\n"
        f"        return (pathlib.Path.touch, (pathlib.Path({str(canary)!r}),))\n"
        f"torch.save({{'model': Payload()}}, {str(tmp_path / 'evil.pth')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    done = run_cli("export", tmp_path / "evil.pth", "-o", tmp_path / "x.onnx", stdout=-1)
    assert done.returncode == 1
    assert "can run code" in done.stderr
    assert "Traceback" not in done.stderr
    assert not canary.exists()
    assert not (tmp_path / "x.onnx").exists()
