import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rfdetr_edge import Detections, InputError, demo
from rfdetr_edge.classes import named_classes
from rfdetr_edge.images import read_image
from rfdetr_edge.masks import Masks
from rfdetr_edge.sinks import annotated, coco_image_ids, coco_results, json_lines
from rfdetr_edge.sources import Frame
from rfdetr_edge.video import VideoReader

CLASSES = named_classes("background-last", ["RBC", "WBC"], [5, 9])
PHOTO = read_image(demo.photo_paths()[0], upright=True)


def found(class_id=1):
    return Detections(
        np.array([[10.5, 20, 110, 220]], np.float32),
        np.array([0.75], np.float32),
        np.array([class_id], np.int64),
        CLASSES,
        PHOTO.shape[:2],
    )


def photo(name):
    return Frame(PHOTO, name)


def clip(name, count):
    return [Frame(PHOTO, name, index, index / 10, 10.0) for index in range(count)]


def test_json_lines_of_photos_and_of_video_frames(tmp_path):
    path = tmp_path / "out.jsonl"
    with json_lines(path) as write:
        write(photo("a.jpg"), found())
        write(clip("v.mp4", 2)[1], found())
    expected = {
        "width": 640,
        "height": 480,
        "detections": [
            {"xyxy": [10.5, 20, 110, 220], "confidence": 0.75, "class_id": 1, "class_name": "WBC"}
        ],
    }
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"image": "a.jpg", **expected},
        {"image": "v.mp4", "frame": 1, "time": 0.1, **expected},
    ]


def test_masks_are_written_as_run_lengths(tmp_path):
    logits = np.zeros((1, 4, 4), np.float32)
    logits[0, 1, 2] = 1.0
    masked = replace(found(), masks=Masks(logits, PHOTO.shape[:2]))
    with json_lines(tmp_path / "a.jsonl") as write:
        write(photo("a"), masked)
    with coco_results(tmp_path / "a.json", {"a": 7}) as write:
        write(photo("a"), masked)
    (rle,) = masked.masks.to_rle()
    assert json.loads((tmp_path / "a.jsonl").read_text())["detections"][0]["mask"] == rle
    assert json.loads((tmp_path / "a.json").read_text())[0]["segmentation"] == rle


def test_coco_results_carry_the_category_ids_of_the_data_set(tmp_path):
    path = tmp_path / "out.json"
    with coco_results(path, {"a.jpg": 7}) as write:
        write(photo("a.jpg"), found())
        write(photo("a.jpg"), found(class_id=2))  # background has no category
    assert json.loads(path.read_text()) == [
        {"image_id": 7, "category_id": 9, "bbox": [10.5, 20, 99.5, 200], "score": 0.75}
    ]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["x/000000000139.jpg", "785.jpg"], [139, 785]),
        (["b.jpg", "a.jpg"], [1, 2]),
        (["5.jpg", "a.jpg"], [1, 2]),
        (["x/5.jpg", "y/5.jpg"], [1, 2]),
    ],
)
def test_coco_image_ids_are_the_numbers_of_the_files_or_their_order(names, ids):
    assert coco_image_ids(names) == dict(zip(names, ids, strict=True))


def test_photos_are_saved_under_their_names_and_none_twice(tmp_path):
    names = ["x/a.jpg", "y/a.jpg", "c.png", "d.tiff", "https://example.org/e.jpg?size=1"]
    with annotated(tmp_path / "out", names) as write:
        for name in names:
            write(photo(name), found())
    saved = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert saved == ["a-2.jpg", "a.jpg", "c.png", "d.jpg", "e.jpg"]
    drawn = read_image(tmp_path / "out" / "c.png", upright=True)
    assert 0 < (drawn != PHOTO).any(axis=2).mean() < 0.1


def test_each_video_becomes_one_video(tmp_path):
    with annotated(tmp_path, ["v.avi", "w.mov"]) as write:
        for frame in [*clip("v.avi", 3), photo("p.jpg"), *clip("w.mov", 2)]:
            write(frame, found())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jpg", "v.mp4", "w.mp4"]
    readers = [VideoReader(tmp_path / name) for name in ("v.mp4", "w.mp4")]
    assert [(reader.count, reader.rate) for reader in readers] == [(3, 10.0), (2, 10.0)]


def test_inputs_are_never_written_over(tmp_path):
    shutil.copy(demo.photo_paths()[0], tmp_path / "a.jpg")
    with (
        pytest.raises(InputError, match="written over"),
        annotated(tmp_path / "x" / "..", [str(tmp_path / "a.jpg")]),
    ):
        pass


@pytest.mark.parametrize("fails", [True, False])
def test_files_appear_whole_when_the_run_ends_or_not_at_all(tmp_path, fails):
    paths = [tmp_path / "out.jsonl", tmp_path / "out.json", tmp_path / "v.mp4"]
    with ExitStack() as stack:
        if fails:
            stack.enter_context(pytest.raises(ZeroDivisionError))
        sinks = [
            stack.enter_context(json_lines(paths[0])),
            stack.enter_context(coco_results(paths[1], {"v.mp4": 1})),
            stack.enter_context(annotated(tmp_path, [])),
        ]
        for frame in clip("v.mp4", 2):
            for sink in sinks:
                sink(frame, found())
        assert not any(path.exists() for path in paths)
        1 / (0 if fails else 1)
    assert sorted(tmp_path.iterdir()) == ([] if fails else sorted(paths))


@pytest.mark.parametrize("name", ["gone/out.json", "folder", "file/out.json"])
def test_a_place_that_cannot_hold_a_file_is_told_at_the_start(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), json_lines(tmp_path / name):
        pytest.fail("the error must come before the work")


def test_a_link_is_written_through(tmp_path):
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.touch()
    link.symlink_to(target)
    with json_lines(link) as write:
        write(photo("a.jpg"), found())
    assert link.is_symlink()
    assert len(Path(target).read_text().splitlines()) == 1
