"""The session of TensorRT, on fakes that forbid more than the real ones (fake_cuda.py).

What the fakes find wrong is in `gpu.faults`, which is empty after each test.
"""

import gc
import sys
import threading
from hashlib import sha256

import numpy as np
import pytest
from fake_cuda import FakeBuffer, FakeCuda, FakeEvent
from graphs import metadata, save_classifier, save_detector

from rfdetr_edge import (
    ArtifactError,
    BackendError,
    BackendUnavailable,
    Detector,
    InputError,
    demo,
)
from rfdetr_edge.backends import open_session
from rfdetr_edge.backends.tensorrt import TensorRtSession
from rfdetr_edge.cuda.driver import Driver, Gpu
from rfdetr_edge.engine_record import read_record

fakes = pytest.importorskip("fake_tensorrt")


@pytest.fixture
def gpu(monkeypatch):
    cuda = FakeCuda()
    fakes.install(monkeypatch, cuda)
    yield cuda
    assert cuda.faults == []


@pytest.fixture
def engine(tmp_path, onnx):
    return fakes.save_engine(tmp_path / "model.engine", onnx, metadata_json=metadata().to_json())


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, 3, 64, 96), np.float32)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6)


def test_detections_are_those_of_the_onnx(gpu, tmp_path):
    onnx = demo.model_path()
    with Detector(onnx) as detector:
        document = detector.metadata.to_json()
        expected = [detector.predict(path) for path in demo.photo_paths()[:1]]
    path = fakes.save_engine(
        tmp_path / "tiny.engine", onnx, batch=(1, 1, 1), metadata_json=document
    )
    with Detector(path) as detector:
        assert detector.provider == "tensorrt"
        assert detector.batch_size == 1
        detector.warm_up()
        found = [detector.predict(path) for path in demo.photo_paths()[:1]]
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one.xyxy, other.xyxy, rtol=1e-5)
    assert gpu.closed == 1


def test_the_session_tells_its_tensors(gpu, engine):
    session = open_session(engine)
    assert [str(spec) for spec in (*session.inputs, *session.outputs)] == [
        "input float32 (?, 3, 64, 96)",
        "dets float32 (?, 24, 4)",
        "labels float32 (?, 24, 4)",
    ]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 11])
def test_any_batch_is_run_in_parts_that_the_profile_allows(gpu, onnx, engine, count):
    expected = open_session(onnx).run({"input": images(count)})
    assert_same(open_session(engine).run({"input": images(count)}), expected)
    assert gpu.calls.count("execute_async_v3") == -(-count // 4)


def test_a_batch_below_the_smallest_is_filled_up(gpu, onnx, tmp_path):
    path = fakes.save_engine(tmp_path / "pairs.engine", onnx, batch=(2, 2, 3))
    session, expected = open_session(path), open_session(onnx).run({"input": images(4)})
    assert_same(session.run({"input": images(4)}), expected)
    one = session.run({"input": images(1)})
    assert_same(one, open_session(onnx).run({"input": images(1)}))
    held = [m.array for m in gpu.live if isinstance(m, FakeBuffer) and m.kind == "device"]
    size = images(1).nbytes
    (read,) = [array for array in held if array[:size].tobytes() == images(1).tobytes()]
    assert not read[size : 2 * size].any()


def test_no_images_are_an_error(gpu, engine):
    with pytest.raises(BackendError, match="one or more images"):
        open_session(engine).run({"input": images(0)})


def test_a_fixed_batch_is_kept(gpu, tmp_path):
    onnx = save_detector(tmp_path / "two.onnx", batch=2)
    path = fakes.save_engine(tmp_path / "two.engine", onnx, batch=(2, 2, 2))
    session = open_session(path)
    assert_same(session.run({"input": images(2)}), open_session(onnx).run({"input": images(2)}))
    with pytest.raises(BackendError, match=r"takes input float32 \(2, 3, 64, 96\)"):
        session.run({"input": images(1)})


def test_buffers_are_made_once_and_shapes_and_addresses_set_when_they_change(gpu, engine):
    session = open_session(engine)
    made = gpu.calls.count("cuMemAlloc"), gpu.calls.count("cuMemHostAlloc")
    assert made == (6, 6)  # three tensors in each of two slots
    for count in (1, 1, 3, 3, 3, 1):
        session.run({"input": images(count)})
    assert (gpu.calls.count("cuMemAlloc"), gpu.calls.count("cuMemHostAlloc")) == made
    assert gpu.calls.count("set_input_shape") == 3
    assert gpu.calls.count("set_tensor_address") == 3
    assert gpu.calls.count("cuStreamCreate") == 1


def test_the_order_of_one_run(gpu, engine):
    session = open_session(engine)
    session.run({"input": images(1)})
    gpu.calls.clear()
    session.run({"input": images(1)})
    assert gpu.calls == [
        "cuMemcpyHtoDAsync",
        "execute_async_v3",
        "cuMemcpyDtoHAsync",
        "cuMemcpyDtoHAsync",
        "cuEventRecord",
        "cuEventSynchronize",
    ]


def test_outputs_stay_when_slots_are_used_again(gpu, onnx, engine):
    session, reference = open_session(engine), open_session(onnx)
    found = [session.run({"input": images(1, seed)}) for seed in range(6)]
    for seed, outputs in enumerate(found):
        assert_same(outputs, reference.run({"input": images(1, seed)}))


def test_two_runs_are_under_way_and_a_third_waits(gpu, engine, monkeypatch):
    session = open_session(engine)
    holding, waiting = threading.Event(), threading.Barrier(3)

    def synchronize(event):
        waiting.wait(timeout=20)
        holding.wait(timeout=20)
        event.stream.run_to(event.end)

    monkeypatch.setattr(FakeEvent, "synchronize", synchronize)
    threads = [
        threading.Thread(target=session.run, args=({"input": images(1, seed)},))
        for seed in range(2)
    ]
    for thread in threads:
        thread.start()
    waiting.wait(timeout=20)  # both are in the stream, and neither is done
    assert gpu.calls.count("execute_async_v3") == 2
    monkeypatch.setattr(FakeEvent, "synchronize", lambda event: event.stream.run_to(event.end))
    third = threading.Thread(target=session.run, args=({"input": images(1, 2)},))
    third.start()
    third.join(timeout=0.2)
    assert third.is_alive()
    assert gpu.calls.count("execute_async_v3") == 2
    holding.set()
    for thread in (*threads, third):
        thread.join(timeout=20)
    assert gpu.calls.count("execute_async_v3") == 3


def test_threads_share_a_session_and_get_their_own_results(gpu, onnx, engine):
    session, reference = open_session(engine), open_session(onnx)
    expected = [reference.run({"input": images(1 + seed % 3, seed)}) for seed in range(8)]
    failures = []

    def work(worker):
        for turn in range(12):
            seed = (worker * 5 + turn) % 8
            found = session.run({"input": images(1 + seed % 3, seed)})
            try:
                assert_same(found, expected[seed])
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    assert gpu.depth == 0
    session.close()


def test_close_waits_for_what_is_under_way(gpu, engine, monkeypatch):
    session = open_session(engine)
    started, go_on, results = threading.Event(), threading.Event(), []

    def synchronize(event):
        started.set()
        go_on.wait(timeout=20)
        event.stream.run_to(event.end)

    monkeypatch.setattr(FakeEvent, "synchronize", synchronize)
    running = threading.Thread(target=lambda: results.append(session.run({"input": images(1)})))
    running.start()
    started.wait(timeout=20)
    closing = threading.Thread(target=session.close)
    closing.start()
    closing.join(timeout=0.2)
    assert closing.is_alive()
    assert gpu.closed == 0
    with pytest.raises(BackendError, match="closed"):
        session.run({"input": images(1)})
    go_on.set()
    for thread in (running, closing):
        thread.join(timeout=20)
    assert gpu.closed == 1
    assert np.isfinite(results[0]["dets"]).all()


def test_everything_is_given_back_in_reverse_and_once(gpu, engine):
    session = open_session(engine)
    session.run({"input": images(1)})
    gpu.calls.clear()
    session.close()
    session.close()
    slot = ["free event", *["free pinned", "free device"] * 3]
    made_first = ["free stream", "free execution context", "free engine", "free runtime"]
    assert gpu.calls == [*slot, *slot, *made_first]
    assert (gpu.live, gpu.closed, gpu.depth) == ([], 1, 0)


def test_a_session_that_nobody_closes_is_given_back(gpu, engine):
    session = open_session(engine)
    session.run({"input": images(1)})
    del session
    gc.collect()
    assert (gpu.live, gpu.closed) == ([], 1)


def test_ten_thousand_sessions_leave_nothing_behind(engine):
    cuda, plan, record = FakeCuda(), engine.read_bytes(), read_record(engine)
    module = fakes.fake_module(cuda)
    for turn in range(10_000):
        session = TensorRtSession(cuda, module, plan, "model.engine", record)
        if turn % 100 == 0:
            session.run({"input": images(1)})
        session.close()
        assert (cuda.live, cuda.closed) == ([], 1)
        cuda.closed = 0
    assert cuda.calls.count("cuMemAlloc") == cuda.calls.count("free device") == 60_000
    assert cuda.faults == []


@pytest.mark.parametrize("made", range(7))
def test_memory_that_does_not_suffice_is_one_error_and_nothing_stays(engine, monkeypatch, made):
    """The engine's slots hold 2 x (4 x 3 x 64 x 96 + 2 x 4 x 24 x 4) floats on each side."""
    cuda = FakeCuda(memory_limit=made * 100_000)
    fakes.install(monkeypatch, cuda)
    with pytest.raises(BackendError, match=r"OUT_OF_MEMORY.*memory is full.*smaller batches"):
        open_session(engine)
    assert (cuda.live, cuda.faults, cuda.closed) == ([], [], 1)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("context", "not load: TensorRT made no context .*no memory for activations"),
        ("address", "set_tensor_address failed"),
        ("shape", "set_input_shape input .* failed .*outside of the profile"),
        ("infer", "the shapes of input stay open"),
        ("enqueue", "execute_async_v3 failed .*not every address"),
        ("throw", "internal error of the bindings"),
    ],
)
def test_what_tensorrt_refuses_says_why(gpu, onnx, tmp_path, fault, said):
    path = fakes.save_engine(tmp_path / "bad.engine", onnx, faults=(fault,))
    with pytest.raises(BackendError, match=f"bad.engine does.*{said}.*build the engine again"):
        open_session(path).run({"input": images(1)})


def test_the_logger_outlives_the_session_that_came_first(onnx, tmp_path):
    """TensorRT goes on telling the first one's."""
    cuda = FakeCuda()
    module = fakes.fake_module(cuda)
    paths = [
        fakes.save_engine(tmp_path / f"{faults}.engine", onnx, faults=tuple(faults))
        for faults in ([], ["shape"])
    ]
    plans = [(path.read_bytes(), path.name, read_record(path)) for path in paths]
    first = TensorRtSession(cuda, module, *plans[0])
    second = TensorRtSession(cuda, module, *plans[1])
    cuda.ordered = False  # whose things are whose is not what this is about
    first.close()
    cuda.closed = 0
    with pytest.raises(BackendError, match="outside of the profile"):
        second.run({"input": images(1)})
    second.close()
    assert cuda.faults == []


@pytest.mark.parametrize("fault", ["host", "format"])
def test_tensors_of_another_kind_are_refused(gpu, onnx, tmp_path, fault):
    path = fakes.save_engine(tmp_path / "bad.engine", onnx, faults=(fault,))
    with pytest.raises(ArtifactError, match=r"'input' of bad.engine is .*no detector takes"):
        open_session(path)
    assert gpu.live == []


def test_an_engine_that_is_no_detector_is_refused_by_the_detector(gpu, tmp_path):
    onnx = save_classifier(tmp_path / "classifier.onnx")
    path = fakes.save_engine(tmp_path / "classifier.engine", onnx, batch=(1, 1, 1))
    with pytest.raises(ArtifactError, match="no RF-DETR detector"):
        Detector(path, class_layout="contiguous")
    assert (gpu.live, gpu.closed) == ([], 1)


def test_a_failed_run_leaves_the_session_usable(gpu, onnx, engine, monkeypatch):
    session = open_session(engine)
    download = FakeCuda.download

    def fail(self, *arguments):
        download(self, *arguments)
        raise BackendError("CUDA refused cuMemcpyDtoHAsync")

    monkeypatch.setattr(FakeCuda, "download", fail)
    for _ in range(3):
        with pytest.raises(BackendError, match="refused"):
            session.run({"input": images(1)})
    assert not any(stream.waiting for stream in gpu.streams)
    monkeypatch.setattr(FakeCuda, "download", download)
    assert_same(session.run({"input": images(1)}), open_session(onnx).run({"input": images(1)}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sm": "90", "gpu": "H100"}, r"sm_90 \(H100\) and tensorrt 10.3.0.30; this is sm_87"),
        ({"version": "10.7.0.1"}, r"tensorrt 10\.7\.0\.1; this is sm_87 \(Orin\) with .* 10\.3\.0"),
    ],
)
def test_an_engine_of_another_machine_says_what_it_was_built_for(
    gpu, onnx, tmp_path, changes, said
):
    path = fakes.save_engine(tmp_path / "other.engine", onnx, requested="fp16", **changes)
    with pytest.raises(BackendError, match=f"{said}.*export MODEL.onnx.*--precision fp16"):
        open_session(path)
    assert gpu.calls == []  # TensorRT has not seen it


def test_tensorrt_rtx_runs_its_own_engines(monkeypatch, onnx, tmp_path):
    cuda = FakeCuda()
    driver = Driver("13.0", (Gpu("RTX", "120", integrated=False),))
    fakes.install(monkeypatch, cuda, driver=driver, module="tensorrt_rtx", version="1.7.1.116")
    fields = {"family": "tensorrt-rtx", "version": "1.7.1.116", "sm": None, "gpu": None}
    path = fakes.save_engine(tmp_path / "any.engine", onnx, **fields)
    session = open_session(path, provider="TensorRT-RTX")
    assert session.provider == "tensorrt-rtx"
    assert_same(session.run({"input": images(2)}), open_session(onnx).run({"input": images(2)}))
    with pytest.raises(InputError, match=r"engine of tensorrt-rtx.*provider='tensorrt'"):
        open_session(path, provider="tensorrt")


def test_the_record_is_needed_and_must_be_that_of_the_engine(gpu, onnx, engine):
    engine.write_bytes(engine.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match=r"not the engine that its \.json describes"):
        open_session(engine)
    engine.with_name("model.engine.json").unlink()
    with pytest.raises(ArtifactError, match=r"model\.engine\.json is missing"):
        open_session(engine)
    assert gpu.calls == []


@pytest.mark.parametrize("plan", [b"", b"vtrt", b"garbage" * 99])
def test_a_plan_that_is_none_is_refused(gpu, onnx, tmp_path, plan):
    """Its record fits, as when the file was damaged before it was hashed."""
    path = tmp_path / "bad.engine"
    fakes.save_engine(path, onnx, engine_sha256=sha256(plan).hexdigest())
    path.write_bytes(plan)
    with pytest.raises(BackendError, match=r"made no engine of it .*Magic tag does not match"):
        open_session(path)
    assert (gpu.live, gpu.closed) == ([], 1)


def test_without_tensorrt_the_error_says_where_it_comes_from(gpu, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"JetPack.*--system-site-packages"):
        open_session(engine)
    assert gpu.calls == []


def test_the_detector_keeps_its_default_chunks_with_a_smaller_profile(gpu, onnx, tmp_path):
    document = metadata().to_json()
    path = fakes.save_engine(
        tmp_path / "model.engine", onnx, batch=(1, 1, 3), metadata_json=document
    )
    pictures = list(np.random.default_rng(2).integers(0, 256, (8, 50, 70, 3), np.uint8))
    with Detector(path) as detector, Detector(onnx) as reference:
        found, expected = detector.predict(pictures), reference.predict(pictures)
    assert [len(d) for d in found] == [len(d) for d in expected]
    assert sum(len(d) for d in found) > 0
