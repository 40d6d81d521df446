"""Preprocessing on the GPU in the session of TensorRT, on strict fakes with the kernel on this CPU.

What the fakes find wrong is in `gpu.faults`, which is empty after each test.
"""

import threading

import numpy as np
import pytest
from fake_cuda import FakeBuffer, FakeCuda
from fill import make_images
from graphs import metadata

from rfdetr_edge import BackendError, BackendUnavailable, Detector, InputError, demo
from rfdetr_edge.backends import open_image_session, open_session, tensorrt
from rfdetr_edge.cli import main
from rfdetr_edge.images import read_image
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import preprocess_batch

fakes = pytest.importorskip("fake_tensorrt")

SPEC = InputSpec((64, 96), antialias=True)
SIZES = ((40, 60), (120, 50), (8, 9), (40, 60), (64, 96))


@pytest.fixture
def gpu(monkeypatch, kernel):
    cuda = FakeCuda({"preprocess": kernel})
    fakes.install(monkeypatch, cuda)
    monkeypatch.setattr(tensorrt, "compile_kernel", {"87": b"compiled"}.__getitem__)
    yield cuda
    assert cuda.faults == []


@pytest.fixture
def engine(tmp_path, onnx):
    document = metadata().to_json()
    return fakes.save_engine(
        tmp_path / "model.engine", onnx, batch=(2, 2, 3), metadata_json=document
    )


def frames(count, seed=0):
    """Of changing sizes; every second one is a BGR frame turned around."""
    found = [
        make_images(seed + place, 1, *SIZES[(seed + place) % len(SIZES)], cell=5)[0]
        for place in range(count)
    ]
    return [frame[..., ::-1] if place % 2 else frame for place, frame in enumerate(found)]


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4)


def test_detections_are_those_of_preprocessing_on_the_cpu(gpu, tmp_path):
    onnx = demo.model_path()
    photos = [read_image(path, upright=True) for path in demo.photo_paths()[:2]]
    images = [photos[0], photos[1][:300, 50:], photos[0][..., ::-1], photos[1]]
    with Detector(onnx) as detector:
        document = detector.metadata.to_json()
        expected = [detector.predict(image) for image in images]
    path = fakes.save_engine(
        tmp_path / "tiny.engine", onnx, batch=(1, 1, 1), metadata_json=document
    )
    with Detector(path, device_preprocess=True) as detector:
        detector.warm_up()
        found = detector.predict(images)
    for one, other in zip(found, expected, strict=True):
        assert one.class_id.tolist() == other.class_id.tolist()
        assert len(one) > 0
        np.testing.assert_allclose(one.xyxy, other.xyxy, atol=0.1)
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-3)
    assert (gpu.live, gpu.closed) == ([], 1)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_batch_is_run_in_parts_that_the_profile_allows(gpu, onnx, engine, count):
    session = open_image_session(engine)
    images = frames(count)
    expected = open_session(onnx).run({"input": preprocess_batch(images, SPEC)})
    assert_same(session.image_run(SPEC)(images), expected)
    assert gpu.calls.count("execute_async_v3") == -(-count // 3)
    assert gpu.calls.count("cuLaunchKernel") == count
    session.close()
    assert (gpu.live, gpu.closed) == ([], 1)


def test_a_batch_below_the_smallest_is_filled_up_with_zeros(gpu, engine):
    session = open_image_session(engine)
    run = session.image_run(SPEC)
    (image,) = frames(1)
    for _ in range(2):  # both slots, then one of them again with what was there before
        run([image, image])
    run([image])
    tensor = preprocess_batch([image], SPEC)
    held = [made.array for made in gpu.live if isinstance(made, FakeBuffer)]
    slots = [a[: 2 * tensor.nbytes].view(np.float32) for a in held if a.size == 3 * tensor.nbytes]
    first, second = np.split(next(slot for slot in slots if not slot[tensor.size :].any()), 2)
    np.testing.assert_allclose(first, tensor.ravel(), atol=1e-4)
    assert not second.any()


def test_a_frame_goes_up_once_and_straight_into_the_engine(gpu, onnx, tmp_path):
    path = fakes.save_engine(tmp_path / "one.engine", onnx, batch=(1, 1, 1))
    run = open_image_session(path).image_run(SPEC)
    run(frames(1))
    gpu.calls.clear()
    run(frames(1))
    assert gpu.calls == [
        "cuEventSynchronize",  # the frame before has left the buffer
        "cuMemcpyHtoDAsync",
        "cuEventRecord",
        "cuLaunchKernel",
        "execute_async_v3",
        "cuMemcpyDtoHAsync",
        "cuMemcpyDtoHAsync",
        "cuEventRecord",
        "cuEventSynchronize",
    ]


def test_buffers_grow_with_the_frames_and_never_shrink(gpu, engine):
    run = open_image_session(engine).image_run(SPEC)
    made = [gpu.calls.count("cuMemAlloc")]
    for size in ((40, 60), (40, 60), (20, 30), (40, 60), (200, 300), (10, 10), (200, 300)):
        run([np.zeros((*size, 3), np.uint8)])
        assert gpu.calls.count("cuMemAlloc") == gpu.calls.count("cuMemHostAlloc")
        made.append(gpu.calls.count("cuMemAlloc"))
    assert np.diff(made).tolist() == [1, 0, 0, 0, 1, 0, 0]
    assert gpu.calls.count("free device") == gpu.calls.count("free pinned") == 1


def test_threads_share_a_session_and_get_their_own_results(gpu, onnx, engine):
    session, reference = open_image_session(engine), open_session(onnx)
    run = session.image_run(SPEC)
    batches = [frames(1 + seed % 4, seed) for seed in range(6)]
    expected = [reference.run({"input": preprocess_batch(images, SPEC)}) for images in batches]
    failures = []

    def work(worker):
        for turn in range(12):
            seed = (worker * 5 + turn) % len(batches)
            try:
                assert_same(run(batches[seed]), expected[seed])
            except (AssertionError, BackendError) as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    session.close()
    assert (gpu.live, gpu.closed, gpu.depth) == ([], 1, 0)
    with pytest.raises(BackendError, match="closed"):
        run(frames(1))


def test_a_frame_that_memory_does_not_hold_is_one_error_and_others_go_on(gpu, onnx, engine):
    session = open_image_session(engine)
    run = session.image_run(SPEC)
    gpu.memory_limit = sum(made.array.nbytes for made in gpu.live if isinstance(made, FakeBuffer))
    gpu.memory_limit += 100_000
    with pytest.raises(BackendError, match=r"OUT_OF_MEMORY.*memory is full"):
        run([np.zeros((1000, 1000, 3), np.uint8)])
    images = frames(2)
    expected = open_session(onnx).run({"input": preprocess_batch(images, SPEC)})
    assert_same(run(images), expected)
    session.close()
    assert (gpu.live, gpu.closed) == ([], 1)


def test_other_images_than_bytes_are_refused_and_nothing_is_run(gpu, engine):
    floats = np.zeros((40, 60, 3), np.float32)
    with Detector(engine, device_preprocess=True) as detector:
        with pytest.raises(InputError, match=r"uint8, not of float32; convert them"):
            detector.predict([frames(1)[0], floats])
        assert "execute_async_v3" not in gpu.calls
        assert len(detector.predict([*frames(2)], threshold=0.0)) == 2


def test_no_images_are_an_error(gpu, engine):
    with pytest.raises(BackendError, match="one or more images"):
        open_image_session(engine).image_run(SPEC)([])


def test_a_tensor_that_the_engine_does_not_take_is_an_error(gpu, engine):
    with pytest.raises(BackendError, match=r"takes input .* gives float32 \(3, 32, 96\)"):
        open_image_session(engine).image_run(InputSpec((32, 96), antialias=True))


def test_other_artifacts_are_refused_with_what_to_do(onnx, capsys):
    with pytest.raises(InputError, match=r"\.onnx .* leave device_preprocess .*out, or .*\.engine"):
        Detector(onnx, device_preprocess=True)
    command = ["predict", str(demo.photo_paths()[0]), "--model", str(onnx), "--device-preprocess"]
    assert main(command) == 2
    assert "on the CPU alone" in capsys.readouterr().err


def test_without_nvcc_the_detector_does_not_open_and_nothing_stays(gpu, engine, monkeypatch):
    def absent(sm):
        raise BackendUnavailable(f"no nvcc for sm_{sm}")

    monkeypatch.setattr(tensorrt, "compile_kernel", absent)
    with pytest.raises(BackendUnavailable, match="no nvcc for sm_87"):
        Detector(engine, device_preprocess=True)
    assert (gpu.live, gpu.closed) == ([], 1)
