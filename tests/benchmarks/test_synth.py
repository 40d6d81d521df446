"""The conveyor belt's photos: their annotations are exact, and the same seed gives them again."""

import argparse
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from benchmarks.cli import synth
from benchmarks.synth.dataset import annotation, generate, make_photo, segmentation
from benchmarks.synth.scene import Scene, make_scene
from benchmarks.synth.shapes import KINDS
from rfdetr_edge.cli import main
from rfdetr_edge.commands import Command
from rfdetr_edge.datasets import read_dataset
from rfdetr_edge.keypoint_schema import class_keypoints

SIZE = (480, 640)
SMALL = (240, 320)


def _scene(number: int) -> Scene:
    return make_scene(np.random.default_rng([5, number]), SIZE)


def _alone(scene: Scene, number: int) -> np.ndarray:
    """The pixels (H, W) of one part if nothing lay on it: those with the centre inside."""
    part = scene.parts[number]
    solids = [_inside(part.to_photo, solid.outline) for solid in part.shape.solids]
    holes = [_inside(part.to_photo, hole) for hole in part.shape.holes]
    return np.any(solids, axis=0) & ~np.any([np.zeros(SIZE, bool), *holes], axis=0)


def _inside(to_photo: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """By counting the edges to the left of each pixel's centre."""
    x, y, w = to_photo @ np.column_stack([outline, np.ones(len(outline))]).T
    inside = np.zeros(SIZE, bool)
    centres = np.arange(SIZE[1]) + 0.5
    corners = list(zip(x / w, y / w, strict=True))
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        for row in range(SIZE[0]):
            if (y0 <= row + 0.5) != (y1 <= row + 0.5):
                crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                inside[row] ^= centres > crossing
    return inside


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 photos of 320x240: 24, 3 and 3."""
    root = tmp_path_factory.mktemp("synth") / "set"
    generate(root, 30, seed=3, size=SMALL)
    return root


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.*"))
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / name, 3, seed=seed, size=SMALL)
    first, again, other = (_digests(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())
    assert len(set(first.values())) == 6, "the splits share a photo"


def test_more_images_extend_a_set(tmp_path, written):
    generate(tmp_path / "few", 3, seed=3, size=SMALL)
    for split in ("train", "valid", "test"):
        photo = f"{split}/000001.jpg"
        assert (tmp_path / "few" / photo).read_bytes() == (written / photo).read_bytes()
        few, many = (
            json.loads((root / split / "_annotations.coco.json").read_text())["annotations"]
            for root in (tmp_path / "few", written)
        )
        assert many[: len(few)] == few


def test_photos_are_split_80_10_10(written):
    photos = {split.name: len(list(split.glob("*.jpg"))) for split in written.iterdir()}
    assert photos == {"train": 24, "valid": 3, "test": 3}


def test_masks_are_what_the_outlines_cover_less_what_lies_on_top():
    hidden = 0
    for scene in map(_scene, (6, 10, 11, 12)):
        left = np.ones(SIZE, bool)
        for number in reversed(range(len(scene.parts))):
            alone = _alone(scene, number)
            expected = alone & left
            visible = scene.owner == number
            assert (expected != visible).sum() < 0.03 * alone.sum()
            hidden += int(expected.sum() < 0.95 * alone.sum())
            left &= ~alone
    assert hidden > 2, "hardly a part lay on another one: the case is not covered"


def test_boxes_areas_and_segmentations_are_those_of_the_visible_pixels():
    kinds = set()
    for scene in map(_scene, range(25)):
        for number in range(len(scene.parts)):
            row = annotation(scene, number)
            visible = scene.owner == number
            rows, columns = np.nonzero(visible)
            x, y, width, height = row["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())
            assert row["area"] == visible.sum() > 0
            polygon = isinstance(row["segmentation"], list)
            kinds.add(polygon)
            mask = _rasterised(row["segmentation"])
            if polygon:
                assert (mask & visible).sum() > 0.98 * (mask | visible).sum()
            else:
                np.testing.assert_array_equal(mask, visible)
    assert kinds == {True, False}


def _rasterised(segmentation: dict | list) -> np.ndarray:
    if isinstance(segmentation, list):
        (rle,) = coco_mask.frPyObjects(segmentation, *SIZE)
    else:
        rle = coco_mask.frPyObjects(segmentation, *SIZE)
    return coco_mask.decode(rle).astype(bool)


def test_rle_starts_with_zeros_even_where_the_first_pixel_is_set():
    mask = np.zeros((3, 4), bool)
    mask[0, 0] = mask[2, 3] = True
    assert segmentation(mask) == {"size": [3, 4], "counts": [0, 1, 10, 1]}
    mask[2, 3] = False
    mask[2, 0] = True
    assert segmentation(mask) == {"size": [3, 4], "counts": [0, 1, 1, 1, 9]}


def test_parts_of_which_little_is_visible_are_not_in_the_photo():
    for scene in map(_scene, range(25)):
        assert 1 <= len(scene.parts) <= 8
        for number, part in enumerate(scene.parts):
            assert (scene.owner == number).sum() >= 0.15 * part.covered.sum()


def test_keypoints_say_where_they_are_and_whether_they_are_seen():
    seen = {0: 0, 1: 0, 2: 0}
    for scene in map(_scene, range(40)):
        for number, part in enumerate(scene.parts):
            row = annotation(scene, number)
            points = np.reshape(row["keypoints"], (-1, 3))
            assert len(points) == len(KINDS[part.kind].keypoints)
            assert row["num_keypoints"] == (points[:, 2] > 0).sum()
            x0, y0, width, height = row["bbox"]
            for x, y, v in points:
                seen[v] += 1
                if v == 0:
                    assert (x, y) == (0, 0)
                    continue
                # pixels of a keypoint count from the centre of the first, a box from its edge
                owner = scene.owner[round(y), round(x)]
                assert (owner == number) == (v == 2)
                assert owner >= number, "a keypoint off its own part"
                if v == 2:
                    assert x0 <= x + 0.5 <= x0 + width
                    assert y0 <= y + 0.5 <= y0 + height
    assert min(seen.values()) > 10, seen


def test_a_part_is_its_own_mirror_image_with_left_and_right_swapped():
    for kind in KINDS:
        shape = kind.build(np.random.default_rng(4))
        order = list(range(len(kind.keypoints)))
        for a, b in class_keypoints(kind.keypoints).flip_pairs:
            order[a], order[b] = order[b], order[a]
        mirrored = shape.keypoints * (1, -1)
        np.testing.assert_allclose(mirrored, shape.keypoints[order], atol=1e-12)
        if not kind.keypoints:
            continue
        for outlines in ([solid.outline for solid in shape.solids], list(shape.holes)):
            shown, flipped = (
                _silhouette([outline * (1, sign) for outline in outlines]) for sign in (1, -1)
            )
            assert (shown != flipped).mean() < 0.002


def _silhouette(outlines: list[np.ndarray]) -> np.ndarray:
    canvas = np.zeros((801, 801), np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [np.rint(outline * 700 + 400).astype(np.int32)], 1)
    return canvas


def test_only_washers_have_no_keypoints(written):
    document = json.loads((written / "valid" / "_annotations.coco.json").read_text())
    categories = document["categories"]
    assert [(row["id"], row["name"]) for row in categories] == [
        (1, "wrench"),
        (2, "bolt"),
        (3, "washer"),
        (4, "bracket"),
    ]
    for row in categories:
        count = len(row["keypoints"])
        assert (count == 0) == (row["name"] == "washer")
        assert count <= 6
        assert {point for bone in row["skeleton"] for point in bone} == set(range(1, count + 1))


def test_pycocotools_and_the_trainer_read_the_set(written, capsys):
    dataset = read_dataset(written, "roboflow", report=None)
    assert tuple(dataset.classes.foreground()) == ("wrench", "bolt", "washer", "bracket")
    for split, images in (("train", 24), ("valid", 3), ("test", 3)):
        coco = COCO(str(written / split / "_annotations.coco.json"))
        assert len(coco.imgs) == images
        for image_id in coco.imgs:
            rows = coco.loadAnns(coco.getAnnIds(image_id))
            masks = np.stack([coco.annToMask(row) for row in rows])
            assert masks.shape[1:] == SMALL
            areas = np.array([row["area"] for row in rows])
            assert (np.abs(masks.sum(axis=(1, 2)) - areas) <= 0.02 * areas).all()
            assert masks.sum(axis=0).max() <= 2, "masks overlap"
            exact = [
                mask
                for mask, row in zip(masks, rows, strict=True)
                if isinstance(row["segmentation"], dict)
            ]
            assert np.sum(exact, axis=0).max() <= 1
    assert capsys.readouterr().err == ""


def test_a_photo_shows_its_parts_where_the_annotations_are():
    """Metal is brighter than the shadowed belt around it, on average over some photos."""
    inside, around = [], []
    for number in range(6):
        photo, scene = make_photo([8, 0, number], SIZE)
        assert photo.shape == (*SIZE, 3)
        assert photo.dtype == np.uint8
        grey = photo.mean(axis=2)
        parts = (scene.owner >= 0).astype(np.uint8)
        ring = cv2.dilate(parts, np.ones((9, 9), np.uint8)) - parts
        inside.append(grey[parts > 0].mean())
        around.append(grey[ring > 0].mean())
    assert np.mean(inside) > 1.5 * np.mean(around)


def _run(command: Command, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    assert _run(synth, str(tmp_path / "out"), "--images", "3", "--size", "96", "64") == 0
    photo = cv2.imread(str(tmp_path / "out" / "test" / "000001.jpg"))
    assert photo.shape == (64, 96, 3)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path / 'out'}: train 1 photos with ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "2"), "2 images are too few"),
        (("--images", "3", "--seed", "-1"), "must be 0 or more, not -1"),
        (("--images", "3", "--size", "640", "63"), "sides must be 64 to 8192"),
    ],
)
def test_impossible_wishes_are_one_line_and_write_nothing(
    tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr("rfdetr_edge.cli.contributed", lambda: [synth])
    assert main(["synth", str(tmp_path / "out"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rfdetr_edge.cli.contributed", lambda: [synth])
    (tmp_path / "mine.txt").write_text("")
    assert main(["synth", str(tmp_path), "--images", "3"]) == 2
    assert "already holds files" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
