import json
import os
import subprocess
from pathlib import Path

import pytest
from graphs import metadata, save_classifier, save_detector
from processes import run_cli

from rfdetr_edge import Detector, __version__, demo
from rfdetr_edge.cli import main
from rfdetr_edge.images import read_image
from rfdetr_edge.pipeline import detect
from rfdetr_edge.progress import Progress
from rfdetr_edge.sources import CameraSource, Frame, ImageSource
from rfdetr_edge.video import write_video

PHOTOS = demo.photo_paths()
FOLDER = str(PHOTOS[0].parent)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "cells.onnx"
    return str(save_detector(path, metadata_json=metadata().to_json()))


def error_of(capsys):
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_json_lines_follow_the_documented_schema(model, capsys):
    assert main(["predict", FOLDER, "--model", model, "--json", "-"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["image"] for record in records] == [str(path) for path in PHOTOS]
    for record in records:
        assert list(record) == ["image", "width", "height", "detections"]
        assert (record["width"], record["height"]) == (640, 480)
        assert len(record["detections"]) == 20
        for found in record["detections"]:
            assert list(found) == ["xyxy", "confidence", "class_id", "class_name"]
            x0, y0, x1, y1 = found["xyxy"]
            assert 0 <= x0 <= x1 <= 640
            assert 0 <= y0 <= y1 <= 480
            assert metadata().classes.names[found["class_id"]] == found["class_name"]


def test_every_output_is_written_in_one_run(model, tmp_path, capsys):
    lines, coco, save = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "new" / "folder"
    outputs = ["--json", str(lines), "--coco", str(coco), "--save", str(save)]
    assert main(["predict", FOLDER, "--model", model, *outputs]) == 0
    assert capsys.readouterr().out == "3 frames, 60 detections\n"
    assert len(lines.read_text().splitlines()) == 3
    assert {row["image_id"] for row in json.loads(coco.read_text())} == {1, 2, 3}
    assert sorted(file.name for file in save.iterdir()) == [path.name for path in PHOTOS]


def test_a_table_is_shown_when_no_output_is_asked_for(model, capsys):
    assert main(["predict", str(PHOTOS[0]), "--model", model, "--threshold", "0.9"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{PHOTOS[0]}  640x480  {len(rows)} detections")
    assert rows
    assert all(float(row.split()[1]) >= 0.9 for row in rows)
    assert last == f"1 frame, {len(rows)} detections"


def test_one_broken_photo_among_many_costs_only_itself(model, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_text("not a photo")
    lines = tmp_path / "out.jsonl"
    arguments = [str(PHOTOS[0]), str(broken), str(PHOTOS[1]), "--json", str(lines)]
    assert main(["predict", *arguments, "--model", model]) == 1
    assert str(broken) in error_of(capsys)
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["image"] for record in records] == [str(PHOTOS[0]), str(PHOTOS[1])]


def test_a_photo_that_is_the_only_one_and_broken_writes_nothing(model, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(PHOTOS[0].read_bytes()[:9000])
    assert main(["predict", str(broken), "--model", model, "--json", str(tmp_path / "o")]) == 2
    assert str(broken) in error_of(capsys)
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "gone.jpg"], "gone.jpg"),
        (["predict", "https://example.org/a.jpg"], "--allow-urls"),
        (["predict", str(PHOTOS[0]), "--threshold", "1.5"], "threshold"),
        (["predict", str(PHOTOS[0]), "--provider", "abacus"], "abacus"),
        (["predict", str(PHOTOS[0]), "--threads", "0"], "threads"),
        (["predict", str(PHOTOS[0]), "--classes", "a,b"], "class"),
        (["predict", str(PHOTOS[0]), "--json", "nowhere/out.jsonl"], "nowhere"),
        (["predict", str(PHOTOS[0]), "--json", "/dev/null"], "regular file"),
        (["predict", str(PHOTOS[0]), "--json", ""], "regular file"),
        (["predict", str(PHOTOS[0]), "--json", "o.json", "--coco", "./o.json"], "its own file"),
        (["predict", str(PHOTOS[0]), "--save", __file__], __file__),
        (["predict", str(PHOTOS[0]), "--save", f"{__file__}/below"], __file__),
        (["predict", str(PHOTOS[0]), "--save", FOLDER], "written over"),
        (["evaluate", "--annotations", "gone.json", "--images", FOLDER], "gone.json"),
    ],
)
def test_a_call_that_cannot_be_used_is_one_line_and_exit_2(model, arguments, message, capsys):
    place = [model] if arguments[0] == "evaluate" else ["--model", model]
    assert main([*arguments, *place]) == 2
    assert message in error_of(capsys)


@pytest.mark.parametrize("command", ["info", "predict"])
def test_a_missing_artifact_is_exit_2(command, capsys):
    call = {"info": ["info", "gone.onnx"], "predict": ["predict", FOLDER, "--model", "gone.onnx"]}
    assert main(call[command]) == 2
    assert "gone.onnx" in error_of(capsys)


def test_an_artifact_that_cannot_run_is_one_line_and_exit_1(model, tmp_path, capsys):
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(Path(model).read_bytes()[:300])
    assert main(["predict", FOLDER, "--model", str(truncated)]) == 1
    assert "truncated.onnx" in error_of(capsys)
    classifier = save_classifier(tmp_path / "classifier.onnx")
    assert main(["predict", FOLDER, "--model", str(classifier), "--class-layout", "coco"]) == 1
    assert "scores" in error_of(capsys)


def test_an_artifact_without_metadata_runs_once_its_classes_are_named(tmp_path, capsys):
    bare = str(save_detector(tmp_path / "bare.onnx"))
    assert main(["predict", FOLDER, "--model", bare]) == 2
    assert "--class-layout" in error_of(capsys)
    options = ["--class-layout", "contiguous", "--classes", "a, b, c, d", "--json", "-"]
    assert main(["predict", str(PHOTOS[0]), "--model", bare, *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {found["class_name"] for found in record["detections"]} <= {"a", "b", "c", "d"}


@pytest.mark.parametrize("output", ["--json", "--coco", "--save"])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(model, tmp_path, output):
    target = tmp_path / "out"
    done = run_cli("predict", FOLDER, "--model", model, output, target, file_limit=2000)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_under_a_video_is_one_error_and_leaves_no_half_file(model, tmp_path):
    image = read_image(PHOTOS[0], upright=False)
    with write_video(tmp_path / "in.mp4", size=(480, 640), rate=25.0) as append:
        for _ in range(5):
            append(image)
    arguments = ["predict", tmp_path / "in.mp4", "--model", model, "--save", tmp_path / "out"]
    done = run_cli(*arguments, file_limit=10_000)
    assert done.returncode == 1
    assert "of 5 frames reached the disk" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_reader_that_leaves_early_is_no_error(model):
    reading, writing = os.pipe()
    os.close(reading)
    done = run_cli("predict", FOLDER, "--model", model, "--json", "-", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_stdout_is_one_line(model):
    with Path("/dev/full").open("w") as full:
        done = run_cli("predict", FOLDER, "--model", model, "--json", "-", stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["rfdetr-edge: error: stdout: No space left on device"]


def test_an_interrupt_ends_a_camera_and_keeps_its_recording(model, tmp_path, monkeypatch, capsys):
    def two_frames_then_interrupt(camera):
        image = read_image(PHOTOS[0], upright=False)
        for index in range(2):
            yield Frame(image, camera.name, index, index / 25, 25.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(CameraSource, "frames", two_frames_then_interrupt)
    lines = tmp_path / "out.jsonl"
    assert main(["predict", "0", "--model", model, "--json", str(lines)]) == 0
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(record["image"], record["frame"]) for record in records] == [
        ("camera 0", 0),
        ("camera 0", 1),
    ]


def test_an_interrupt_while_writing_hands_no_frame_on_twice(model, monkeypatch):
    def endless(camera):
        image = read_image(PHOTOS[0], upright=False)
        yield from (Frame(image, camera.name, index, index / 25, 25.0) for index in range(9))

    def interrupt(frame, _):
        if frame.index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(CameraSource, "frames", endless)
    seen = []
    with Detector(model) as detector, Progress("frames", None) as progress:
        sinks = [lambda frame, _: seen.append(frame.index), interrupt]
        detect([CameraSource(0)], detector, sinks, threshold=0.5, progress=progress)
    assert seen == [0, 1]


def test_an_interrupt_among_photos_writes_nothing(model, tmp_path, monkeypatch, capsys):
    def interrupted(source):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageSource, "frames", interrupted)
    assert main(["predict", FOLDER, "--model", model, "--json", str(tmp_path / "o")]) == 130
    assert "interrupted" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_video_is_one_line_without_opencvs_own(model, tmp_path):
    video = tmp_path / "a.mp4"
    video.write_text("no video")
    done = run_cli("predict", video, "--model", model, stdout=subprocess.DEVNULL)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_name_that_stdout_cannot_encode_is_no_error(model, tmp_path):
    photo = tmp_path / "größe.jpg"
    photo.write_bytes(PHOTOS[0].read_bytes())
    env = {"PYTHONIOENCODING": "ascii"}
    done = run_cli("predict", photo, "--model", model, env=env, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gr\xf6\xdfe.jpg" in done.stdout


def test_coco_refuses_videos(model, tmp_path, capsys):
    video = tmp_path / "a.mp4"
    video.touch()
    assert main(["predict", str(video), "--model", model, "--coco", str(tmp_path / "o")]) == 2
    assert "--coco takes photos only" in error_of(capsys)


def test_info_describes_the_artifact(model, capsys):
    assert main(["info", model, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metadata"] == json.loads(metadata().to_json())
    assert document["bytes"] == Path(model).stat().st_size
    assert document["inputs"] == [{"name": "input", "shape": [1, 3, 64, 96], "dtype": "float32"}]
    assert main(["info", model]) == 0
    text = capsys.readouterr().out
    assert document["sha256"] in text
    assert "0 RBC, 1 WBC, 2 Platelets" in text


def test_version_is_the_packages_own(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"rfdetr-edge {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["predict"], ["predict", "a", "--what"]])
def test_a_wrong_call_is_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: rfdetr-edge" in capsys.readouterr().err


def test_demo_annotates_the_embedded_photos(tmp_path, capsys):
    """Needs the embedded models."""
    assert main(["demo", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert {folder.name for folder in tmp_path.iterdir()} == {*demo.EMBEDDED}
    for task in demo.EMBEDDED:
        photos = demo.photo_paths(task)
        assert all(f"{path}  640x480" in shown for path in photos)
        assert sorted(file.name for file in (tmp_path / task).iterdir()) == [p.name for p in photos]


def test_demo_takes_one_task(tmp_path, capsys):
    """Needs the embedded models."""
    assert main(["demo", "--task", "detection", "--output", str(tmp_path)]) == 0
    assert [folder.name for folder in tmp_path.iterdir()] == ["detection"]
    assert "WBC" in capsys.readouterr().out


def test_the_embedded_model_is_the_default(capsys):
    """Needs the embedded model."""
    assert main(["predict", str(PHOTOS[0]), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["detections"]
    assert "RBC" in {detection["class_name"] for detection in found}


def test_a_fixed_batch_is_filled_and_gives_what_single_runs_give(tmp_path, capsys):
    records = []
    for batch in (1, 2):
        path = tmp_path / f"batch{batch}.onnx"
        save_detector(path, batch=batch, metadata_json=metadata().to_json())
        assert main(["predict", FOLDER, "--model", str(path), "--json", "-"]) == 0
        records.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert len(records[0]) == len(PHOTOS)
    assert records[0] == records[1]
