import shutil
from pathlib import Path

import numpy as np
import pytest
from graphs import metadata, save_detector

from rfdetr_edge import BackendError, Detections, Detector, InputError
from rfdetr_edge.backends import TensorSpec, open_session
from rfdetr_edge.backends.fake import FakeSession
from rfdetr_edge.images import read_image

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

DEMO = Path(__file__).parents[2] / "rfdetr_edge/demo/cells"
PHOTO = DEMO / "BloodImage_00007.jpg"
FLOAT = np.dtype(np.float32)


@pytest.fixture
def artifact(tmp_path):
    return save_detector(tmp_path / "model.onnx", batch=None, metadata_json=metadata().to_json())


@pytest.fixture
def detector(artifact):
    with Detector(artifact) as opened:
        yield opened


def assert_same(one, other):
    np.testing.assert_array_equal(one.class_id, other.class_id)
    np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)
    np.testing.assert_allclose(one.xyxy, other.xyxy, atol=1e-2)
    assert one.source_size == other.source_size


def test_a_photo_gives_detections_in_its_own_pixels(detector):
    ranked = detector.predict(PHOTO, threshold=0.0)
    assert isinstance(ranked, Detections)
    assert (len(ranked), ranked.source_size) == (20, (480, 640))
    assert ranked.xyxy[:, 2].max() > 96  # beyond the resolution
    middle = ranked.confidence[10]
    kept = detector.predict(PHOTO, threshold=middle)
    assert_same(kept, ranked[ranked.confidence > middle])
    assert (detector.provider, detector.resolution) == ("cpu", (64, 96))


def test_every_kind_of_image_gives_the_same(detector):
    rgb = read_image(PHOTO, upright=True)
    expected = detector.predict(rgb)
    assert len(expected) > 0
    for image in (PHOTO, str(PHOTO), PHOTO.read_bytes(), rgb / np.float32(255)):
        assert_same(detector.predict(image), expected)
    assert_same(detector.predict(rgb[:, :, ::-1], bgr=True), expected)
    assert_same(detector.predict(PHOTO, bgr=True), expected)  # about arrays alone
    assert_same(detector.predict(Image.fromarray(rgb)), expected)


def test_a_list_or_folder_in_gives_a_list_out(detector, tmp_path):
    paths = sorted(DEMO.glob("*.jpg"))
    singles = [detector.predict(path) for path in paths]
    shutil.copy(paths[0], tmp_path / "photo.jpg")
    for many in (paths, tuple(paths), DEMO, str(DEMO)):
        results = detector.predict(many)
        assert isinstance(results, list)
        for result, single in zip(results, singles, strict=True):
            assert_same(result, single)
    assert detector.predict([]) == []
    assert len(detector.predict([PHOTO])) == 1


def spying(artifact, batch):
    """A detector on a real session, and the batch sizes that it ran."""
    session = open_session(artifact)
    sizes: list[int] = []

    def run(feeds):
        sizes.append(len(feeds["input"]))
        return session.run(feeds)

    spec = TensorSpec("input", (batch, 3, 64, 96), FLOAT)
    fake = FakeSession(run, (spec,), session.outputs, session.metadata_json)
    return Detector.from_session(fake), sizes


@pytest.mark.parametrize(
    ("batch", "batch_size", "runs"),
    [
        (None, None, [8, 2]),
        (None, 4, [4, 4, 2]),
        (None, 100, [10]),
        (4, None, [4, 4, 4]),
        (4, 3, [4, 4, 4, 4]),
        (1, None, [1] * 10),
    ],
)
def test_batches_run_as_batches_and_change_no_result(tmp_path, batch, batch_size, runs):
    artifact = save_detector(
        tmp_path / "model.onnx", batch=batch, metadata_json=metadata().to_json()
    )
    single = Detector(
        save_detector(tmp_path / "one.onnx", batch=1, metadata_json=metadata().to_json())
    )
    photo = read_image(PHOTO, upright=True)
    images = [photo[: 40 * n, 30 * n :] for n in range(1, 11)]  # of different sizes
    detector, sizes = spying(artifact, batch)
    results = detector.predict(images, batch_size=batch_size)
    assert sizes == runs
    for result, image in zip(results, images, strict=True):
        assert_same(result, single.predict(image))


@pytest.mark.parametrize(
    ("batch", "size", "message"), [(4, 5, "1 to 4"), (4, 0, "1 to 4"), (None, 0, "at least 1")]
)
def test_a_batch_size_that_the_artifact_cannot_take_is_refused(tmp_path, batch, size, message):
    path = save_detector(tmp_path / "m.onnx", batch=batch, metadata_json=metadata().to_json())
    with pytest.raises(InputError, match=f"batch_size must be {message}.* not {size}"):
        Detector(path).predict(PHOTO, batch_size=size)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", None])
def test_a_threshold_outside_0_to_1_is_refused(detector, threshold):
    with pytest.raises(InputError, match="threshold must be a number from 0 to 1"):
        detector.predict(PHOTO, threshold=threshold)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((8, 8, 3), np.nan, np.float32), "NaN"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((8, 8, 3), np.uint16), "uint16"),
        (np.zeros((8, 8), np.uint8), r"\(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((), np.uint8), r"\(\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"\(1, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        ("nowhere.jpg", "no image file"),
        ("a" * 5000, "cannot read"),
        (b"", "empty"),
        (None, "NoneType"),
    ],
    ids=[
        "nan",
        "int",
        "16 bit",
        "rank 2",
        "alpha",
        "rank 0",
        "rank 4",
        "empty",
        "path",
        "long",
        "b",
        "?",
    ],
)
def test_a_bad_image_is_refused_and_found_in_a_list(detector, image, message):
    for bgr in (False, True):
        with pytest.raises(InputError, match=message):
            detector.predict(image, bgr=bgr)
    with pytest.raises(InputError, match=f"image 1 of 2: .*{message}"):
        detector.predict([PHOTO, image])


@pytest.mark.parametrize("shape", [(1, 1), (20000, 10)])
def test_extreme_sizes_work(detector, shape):
    detections = detector.predict(np.full((*shape, 3), 200, np.uint8), threshold=0.0)
    assert (len(detections), detections.source_size) == (20, shape)


def test_an_empty_folder_is_refused(detector, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        detector.predict(tmp_path / "nothing")


def fake_detector(logit, box=0.5):
    specs = (TensorSpec("dets", (None, 2, 4), FLOAT), TensorSpec("labels", (None, 2, 4), FLOAT))
    image = TensorSpec("input", (None, 3, 64, 96), FLOAT)

    def run(feeds):
        shape = (len(feeds["input"]), 2, 4)
        return {"dets": np.full(shape, box, FLOAT), "labels": np.full(shape, logit, FLOAT)}

    return Detector.from_session(FakeSession(run, (image,), specs, metadata().to_json()))


def test_a_detector_runs_on_a_session_made_of_a_function():
    detections = fake_detector(2.0).predict(PHOTO)
    np.testing.assert_allclose(detections.xyxy, [[160, 120, 480, 360]] * 8)
    np.testing.assert_allclose(detections.confidence, 1 / (1 + np.exp(-2)), rtol=1e-6)


@pytest.mark.parametrize(("logit", "box"), [(np.nan, 0.5), (2.0, np.nan), (2.0, np.inf)])
def test_outputs_that_are_no_numbers_are_an_error_not_an_empty_result(logit, box):
    with pytest.raises(BackendError, match="gave NaN or infinity on fake"):
        fake_detector(logit, box).predict(PHOTO)


def test_after_closing_nothing_runs(detector):
    detector.warm_up()
    detector.close()
    with pytest.raises(BackendError, match="closed"):
        detector.predict(PHOTO)


def extra_detector(tmp_path, task, batch=None):
    extra = {"segmentation": {"masks": "masks"}, "keypoint": {"keypoints": "keypoints"}}[task]
    document = metadata(task=task).to_json()
    path = tmp_path / f"{task}-{batch}.onnx"
    return Detector(save_detector(path, batch=batch, metadata_json=document, **extra))


def test_masks_are_in_the_pixels_of_each_image(tmp_path):
    detector = extra_detector(tmp_path, "segmentation")
    photo = read_image(PHOTO, upright=True)
    images = [photo, photo[:101, :203], photo[:17]]
    for result, image in zip(detector.predict(images, threshold=0.2), images, strict=True):
        alone = detector.predict(image, threshold=0.2)
        assert_same(result, alone)
        assert result.mask.shape == (len(alone), *image.shape[:2])
        assert (result.mask != alone.mask).mean() < 1e-4  # logits that are 0 but for rounding
        assert 0 < result.mask.mean() < 1


@pytest.mark.parametrize("batch", [None, 2])
def test_keypoints_are_in_the_pixels_of_each_image(tmp_path, batch):
    detector = extra_detector(tmp_path, "keypoint", batch)
    photo = read_image(PHOTO, upright=True)
    images = [photo, photo[:101, :203], photo[:17]]
    for result, image in zip(detector.predict(images, threshold=0.1), images, strict=True):
        alone = detector.predict(image, threshold=0.1)
        assert_same(result, alone)
        assert result.keypoints.shape == (len(alone), 3, 2)
        np.testing.assert_allclose(result.keypoints, alone.keypoints, atol=1e-2)
        np.testing.assert_allclose(result.covariance, alone.covariance, rtol=1e-3)
        assert len(result) > 0


def test_nothing_over_the_threshold_gives_empty_arrays_of_the_right_rank(tmp_path):
    masked = extra_detector(tmp_path, "segmentation").predict(PHOTO, threshold=1.0)
    assert (masked.xyxy.shape, masked.mask.shape) == ((0, 4), (0, 480, 640))
    pointed = extra_detector(tmp_path, "keypoint").predict(PHOTO, threshold=1.0)
    assert (pointed.keypoints.shape, pointed.covariance.shape) == ((0, 3, 2), (0, 3, 2, 2))


def broken_detector(tmp_path, task, place, value):
    """A real detector, one number of whose masks or keypoints is another."""
    session = extra_detector(tmp_path, task)._session
    name = session.outputs[-1].name

    def run(feeds):
        outputs = session.run(feeds)
        outputs[name][place] = value
        return outputs

    fake = FakeSession(run, session.inputs, session.outputs, session.metadata_json)
    return Detector.from_session(fake)


@pytest.mark.parametrize(
    ("task", "channel", "value"),
    [
        ("segmentation", 3, np.nan),
        ("keypoint", 0, np.nan),
        ("keypoint", 1, np.inf),
        ("keypoint", 4, np.nan),
    ],
)
def test_masks_and_keypoints_that_are_no_numbers_are_an_error(tmp_path, task, channel, value):
    detector = broken_detector(tmp_path, task, (0, 5, 2, channel), value)
    with pytest.raises(BackendError, match="gave NaN or infinity on fake"):
        detector.predict(PHOTO)


def test_extreme_uncertainty_is_no_error(tmp_path):
    detector = broken_detector(tmp_path, "keypoint", (0, slice(None), slice(None), 4), np.inf)
    found = detector.predict(PHOTO, threshold=0.0)
    assert len(found) > 0
    assert np.isnan(found.covariance).all()
