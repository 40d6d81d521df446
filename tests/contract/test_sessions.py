"""What every session does, whatever executes it. A new backend adds a line to `FACTORIES`."""

import numpy as np
import pytest
from graphs import metadata, save_detector

from rfdetr_edge import BackendError
from rfdetr_edge.backends import TensorSpec, open_session
from rfdetr_edge.backends.fake import FakeSession
from rfdetr_edge.tuning import Tuning

FLOAT = np.dtype(np.float32)


def onnxrt(folder):
    pytest.importorskip("onnxruntime")
    return open_session(
        save_detector(folder / "model.onnx", batch=None, metadata_json=metadata().to_json())
    )


def onnxrt_tuned(folder):
    pytest.importorskip("onnxruntime")
    backend = pytest.importorskip("rfdetr_edge.backends.onnxrt")
    artifact = save_detector(folder / "model.onnx", batch=None, metadata_json=metadata().to_json())
    backend.save_optimized(artifact, "all", folder / "saved.onnx")
    tuning = Tuning(threads=1, spinning=False, arena=False, optimized="saved.onnx")
    return open_session(artifact, tuning=tuning)


def litert(folder):
    graphs = pytest.importorskip("tflite_graphs")
    return open_session(
        graphs.save_tflite(folder / "model.tflite", batch=None, metadata_json=metadata().to_json())
    )


def litert_reference(folder):
    graphs = pytest.importorskip("tflite_graphs")
    options = {"batch": None, "layout": "nhwc", "metadata_json": metadata().to_json()}
    path = graphs.save_tflite(folder / "model.tflite", **options)
    return open_session(path, provider="reference")


def tensorrt(folder):
    """With CUDA and TensorRT that are fakes and executions that are not."""
    pytest.importorskip("onnxruntime")
    fakes = pytest.importorskip("fake_tensorrt")
    onnx = save_detector(folder / "model.onnx", batch=None)
    artifact = folder / "model.engine"
    fakes.save_engine(artifact, onnx, batch=(1, 2, 2), metadata_json=metadata().to_json())
    with pytest.MonkeyPatch.context() as patches:
        fakes.install(patches, fakes.FakeCuda())
        return open_session(artifact)


def fake(_):
    def mean_colour(feeds):
        mean = feeds["input"].mean(axis=(2, 3))[:, None, :]  # (B, 1, 3)
        return {
            "dets": np.repeat(mean[:, :, :1], 4, axis=2).repeat(24, axis=1),
            "labels": np.repeat(mean[:, :, :1], 4, axis=2).repeat(24, axis=1),
        }

    return FakeSession(
        mean_colour,
        inputs=(TensorSpec("input", (None, 3, 64, 96), FLOAT),),
        outputs=(
            TensorSpec("dets", (None, 24, 4), FLOAT),
            TensorSpec("labels", (None, 24, 4), FLOAT),
        ),
        metadata_json=metadata().to_json(),
    )


FACTORIES = [onnxrt, onnxrt_tuned, litert, litert_reference, tensorrt, fake]


@pytest.fixture(params=FACTORIES, ids=lambda factory: factory.__name__)
def session(request, tmp_path):
    opened = request.param(tmp_path)
    yield opened
    opened.close()


def images(count):
    return np.random.default_rng(0).random((count, 3, 64, 96), np.float32)


@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_are_as_declared(session, batch):
    outputs = session.run({"input": images(batch)})
    assert list(outputs) == [spec.name for spec in session.outputs]
    for spec in session.outputs:
        assert outputs[spec.name].dtype == spec.dtype
        assert outputs[spec.name].shape == (batch, *spec.shape[1:])


def test_a_batch_gives_what_single_images_give(session):
    batch = session.run({"input": images(3)})
    for index in range(3):
        single = session.run({"input": images(3)[index : index + 1]})
        for name, array in single.items():
            np.testing.assert_allclose(batch[name][index], array[0], rtol=1e-5)


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"image": images(1)},
        {"input": images(1), "other": images(1)},
        {"input": images(1)[0]},
        {"input": images(1)[:, :, :32]},
        {"input": images(1).astype(np.float64)},
    ],
    ids=["none", "another name", "one too many", "rank", "size", "dtype"],
)
def test_feeds_that_do_not_fit_are_refused(session, feeds):
    with pytest.raises(BackendError, match=r"takes input float32 \(\?, 3, 64, 96\); it was fed"):
        session.run(feeds)


def test_inputs_are_not_changed(session):
    feeds = {"input": images(1)}
    session.run(feeds)
    np.testing.assert_array_equal(feeds["input"], images(1))


def test_outputs_are_the_callers_and_outlive_later_runs(session):
    first = session.run({"input": images(1)})
    kept = {name: array.copy() for name, array in first.items()}
    session.run({"input": 1 - images(1)})
    session.close()
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_the_metadata_comes_back_as_written(session):
    assert session.metadata_json == metadata().to_json()


def test_the_provider_has_a_short_name(session):
    assert session.provider == session.provider.lower() != ""


def test_a_closed_session_runs_no_more(session):
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"input": images(1)})
