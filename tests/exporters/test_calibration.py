"""Calibration sets take every image that was meant, as inference reads it, and say which."""

import json
import shutil
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from graphs import metadata
from PIL import Image

from exporters.calibration import calibration_set
from rfdetr_edge.backends import TensorSpec
from rfdetr_edge.backends.fake import FakeSession
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import read_image, write_image
from rfdetr_edge.metadata import InputSpec

SPEC = InputSpec((32, 48), antialias=True)


def _pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)


def _write(folder: Path, images: np.ndarray, name: str = "{:03}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        write_image(folder / name.format(index), image)
    return folder


def _annotate(path: Path, names: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return path


def _folder(root):
    return _write(root / "photos", _pixels(5))


def _split(root):
    folder = _write(root / "train", _pixels(5))
    write_image(folder / "unlisted.png", _pixels(1, seed=9)[0])
    _annotate(folder / "_annotations.coco.json", [f"{i:03}.png" for i in (4, 2, 0, 1, 3, 3)])
    return folder


def _annotation_file(root):
    return _split(root) / "_annotations.coco.json"


def _images_beside(root):
    _write(root / "images", _pixels(5))
    return _annotate(root / "all.json", [f"{i:03}.png" for i in range(5)])


def _images_beside_its_folder(root):
    _write(root / "images" / "day", _pixels(5))
    return _annotate(root / "labels" / "all.json", [f"day/{i:03}.png" for i in range(5)])


def _coco_own(root):
    _write(root / "val2017", _pixels(5))
    _write(root / "train2017", _pixels(5, seed=9))
    names = [f"{i:03}.png" for i in range(5)]
    return _annotate(root / "annotations" / "instances_val2017.json", names)


def _paths(root):
    files = sorted(_folder(root).iterdir())
    return [str(files[3]), files[1], files[0], files[4], files[2], files[1]]


def _numpy_file(root):
    np.save(root / "calib.npy", _pixels(5))
    return root / "calib.npy"


def _array(root):
    return _pixels(5)


SOURCES = (
    _folder,
    _split,
    _annotation_file,
    _images_beside,
    _images_beside_its_folder,
    _coco_own,
    _paths,
    _numpy_file,
    _array,
)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_images_in_the_same_order(tmp_path, source):
    chosen = calibration_set(source(tmp_path))
    assert len(chosen) == chosen.available == 5
    np.testing.assert_array_equal(list(chosen.pixels()), _pixels(5))
    assert (len(chosen), chosen.digest) == (5, calibration_set(_pixels(5)).digest)


@pytest.mark.parametrize("source", SOURCES)
def test_a_limit_makes_the_same_sorted_choice_of_every_source(tmp_path, source):
    source = source(tmp_path)
    drawn = {}
    for seed in range(10):
        chosen = calibration_set(source, limit=3, seed=seed)
        wanted = calibration_set(_pixels(5), limit=3, seed=seed)
        assert (len(chosen), chosen.available) == (3, 5)
        assert chosen.digest == wanted.digest
        assert list(chosen.images) == sorted(chosen.images)
        drawn[seed] = chosen.digest
    assert len(set(drawn.values())) > 3
    assert str(chosen).startswith("3 of 5 images from ")


def test_float_pixels_in_0_to_1_are_the_same_input_as_bytes():
    images = _pixels(2)
    floats = calibration_set(images.astype(np.float32) / 255)
    for found, wanted in zip(
        floats.tensors(SPEC), calibration_set(images).tensors(SPEC), strict=True
    ):
        assert found.shape == (1, 3, *SPEC.resolution)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_tensors_are_what_the_runtime_feeds_its_session():
    fed = []

    def run(feeds):
        fed.append(feeds["input"].copy())
        return {"dets": np.zeros((1, 24, 4), np.float32), "labels": np.zeros((1, 24, 4), "f4")}

    float32 = np.dtype(np.float32)
    document = metadata()
    session = FakeSession(
        run,
        inputs=(TensorSpec("input", (1, 3, *document.input.resolution), float32),),
        outputs=(
            TensorSpec("dets", (1, 24, 4), float32),
            TensorSpec("labels", (1, 24, 4), float32),
        ),
        metadata_json=document.to_json(),
    )
    Detector.from_session(session).predict(photo_paths(), batch_size=1)
    chosen = calibration_set(photo_paths())
    tensors = list(chosen.tensors(document.input))
    np.testing.assert_array_equal(tensors, fed[-len(tensors) :])  # a warm-up run may come first


def test_files_are_read_as_stored_whatever_their_exif_tag(tmp_path):
    photo = Image.open(photo_paths()[0])
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    for name, exif in (("plain", Image.Exif()), ("turned", turned)):
        (tmp_path / name).mkdir()
        photo.save(tmp_path / name / "photo.jpg", quality=95, exif=exif)
    upright = read_image(tmp_path / "turned" / "photo.jpg", upright=True)
    plain, tagged = (calibration_set(tmp_path / name) for name in ("plain", "turned"))
    assert next(tagged.pixels()).shape[:2] == upright.shape[1::-1]
    assert plain.digest == tagged.digest


def test_the_digest_is_of_pixels_order_and_count_and_of_nothing_else(tmp_path):
    images = _pixels(4)
    digest = calibration_set(images).digest
    renamed = _write(tmp_path / "other", images, "frame-{:05}.bmp")
    assert calibration_set(renamed).digest == digest
    changed = images.copy()
    changed[3, -1, -1, 2] ^= 1
    other = [
        changed,
        images[::-1],
        images[:3],
        images.reshape(4, 30, 20, 3),
        images / np.float32(255),
    ]
    assert len({digest, *(calibration_set(array).digest for array in other)}) == 6


def test_images_are_decoded_one_by_one(tmp_path):
    folder = _write(tmp_path, _pixels(2))
    (folder / "002.png").write_bytes(b"no image")
    tensors = calibration_set(folder).tensors(SPEC)
    assert [next(tensors).shape for _ in range(2)] == [(1, 3, *SPEC.resolution)] * 2
    with pytest.raises(InputError, match=r"002\.png is truncated, or no image"):
        next(tensors)


@pytest.mark.parametrize("kind", ["folder", "npy"])
def test_memory_holds_no_more_than_two_images(tmp_path, kind):
    images = np.zeros((12, 600, 800, 3), np.uint8)
    np.save(tmp_path / "calib.npy", images)
    source = tmp_path / "calib.npy" if kind == "npy" else _write(tmp_path / "photos", images)
    size = images[0].nbytes
    del images
    tracemalloc.start()
    chosen = calibration_set(source)
    assert chosen.digest
    assert sum(1 for _ in chosen.tensors(SPEC)) == 12
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # of a file its BGR pixels too, while they become RGB, beside the image before it
    assert peak < 3.5 * size


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("total", [2, 3, 10, 64])
def test_a_split_shares_out_every_image_evenly(share, total):
    whole = calibration_set(_pixels(total))
    first, second = whole.split(share)
    assert len(first) == min(max(round(total * share), 1), total - 1)
    assert {**first.images, **second.images}.keys() == whole.images.keys()
    assert len(first) + len(second) == total
    places = [place for place, name in enumerate(whole.images) if name in first.images]
    gaps = {b - a for a, b in pairwise([*places, total])}
    assert max(gaps) - min(gaps) <= 1
    assert [part.digest for part in whole.split(share)] == [first.digest, second.digest]


def test_files_of_a_folder_that_take_no_part_are_named_once(tmp_path, caplog):
    folder = _write(tmp_path / "photos", _pixels(2))
    (folder / ".hidden").touch()
    assert len(calibration_set(folder)) == 2
    assert not caplog.messages
    (folder / "more").mkdir()
    (folder / "IMG_1.heic").touch()
    assert len(calibration_set(folder)) == 2
    (message,) = caplog.messages
    assert "2 entries that are no images by their suffix, such as IMG_1.heic" in message


def _missing(root):
    return root / "nowhere"


def _empty(root):
    return root


def _text(root):
    (root / "notes.txt").write_text("none")
    return root / "notes.txt"


def _listing_missing_ones(root):
    folder = _write(root / "train", _pixels(2))
    return (
        _annotate(folder / "a.json", ["000.png", "001.png", "lost.png", "also.png"]).parent
        / "a.json"
    )


def _listing_none(root):
    return _annotate(root / "_annotations.coco.json", []).parent


def _no_coco(root):
    (root / "a.json").write_text("[]")
    return root / "a.json"


def _no_paths(root):
    return []


def _lost_paths(root):
    return [*photo_paths(), root / "lost.jpg", root]


def _no_numpy(root):
    (root / "a.npy").write_bytes(b"PK\3\4 an archive")
    return root / "a.npy"


def _cut_numpy(root):
    path = _numpy_file(root)
    path.write_bytes(path.read_bytes()[:-1])
    return path


def _objects(root):
    np.save(root / "a.npy", np.array([None]), allow_pickle=True)
    return root / "a.npy"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (_missing, "there is no .*nowhere to calibrate with; give a folder of images, "),
        (_empty, "holds no images"),
        (_text, r"notes\.txt is nothing to calibrate with; give a folder"),
        (_listing_missing_ones, r"lists 4 images, of which 2 are missing, such as .*also\.png"),
        (_listing_none, r"_annotations\.coco\.json lists no images"),
        (_no_coco, "holds no JSON object"),
        (_no_paths, "there are no files to calibrate with"),
        (_lost_paths, r"2 of 5 calibration images are no files, such as "),
        (_no_numpy, r"a\.npy cannot be read as an \.npy file"),
        (_cut_numpy, r"calib\.npy cannot be read as an \.npy file"),
        (_objects, r"a\.npy cannot be read as an \.npy file"),
        (lambda root: _pixels(2)[0], r"the array has shape \(20, 30, 3\); wanted \(N, height"),
        (lambda root: _pixels(2).transpose(0, 3, 1, 2), r"shape \(2, 3, 20, 30\); wanted"),
        (lambda root: _pixels(0), r"shape \(0, 20, 30, 3\); wanted"),
        (lambda root: _pixels(2).astype(np.int16), "the array is of int16; wanted"),
        (lambda root: _pixels(2) / 255, "the array is of float64; wanted"),
    ],
)
def test_what_cannot_be_calibrated_with_is_refused(tmp_path, source, message):
    with pytest.raises(InputError, match=message):
        calibration_set(source(tmp_path))


@pytest.mark.parametrize(
    ("value", "message"),
    [(1.5, "with values from 0 to 1.5"), (-0.1, "from -0.1 to 0"), (np.nan, "with NaN")],
)
def test_a_float_image_out_of_range_is_named(tmp_path, value, message):
    images = np.zeros((3, 4, 5, 3), np.float32)
    images[1, 2, 3, 0] = value
    np.save(tmp_path / "calib.npy", images)
    chosen = calibration_set(tmp_path / "calib.npy")
    for use in (lambda: list(chosen.tensors(SPEC)), lambda: chosen.digest):
        with pytest.raises(InputError, match=f"1 of .*calib.npy: .*{message}"):
            use()


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b""])
def test_one_broken_file_ends_the_digest_too(tmp_path, spoil):
    for path in photo_paths():
        shutil.copy(path, tmp_path)
    broken = tmp_path / photo_paths()[1].name
    broken.write_bytes(spoil(broken.read_bytes()))
    chosen = calibration_set(tmp_path)
    with pytest.raises(InputError, match=broken.name):
        _ = chosen.digest


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: calibration_set(_pixels(2), limit=0), "at least 1, not 0"),
        (lambda: calibration_set(_pixels(2)).split(0.0), "above 0 and below 1, not 0"),
        (lambda: calibration_set(_pixels(2)).split(1.0), "above 0 and below 1, not 1"),
        (lambda: calibration_set(_pixels(1)).split(), "give at least 2 images"),
    ],
)
def test_settings_out_of_range_are_refused(use, message):
    with pytest.raises(InputError, match=message):
        use()


@pytest.mark.parametrize("module", ["calibration", "observers"])
def test_numpy_is_enough_to_import(module):
    heavy = ("torch", "onnx", "onnxruntime", "cv2", "yaml", "PIL")
    program = f"import sys, exporters.{module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
