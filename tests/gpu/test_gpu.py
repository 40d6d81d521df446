"""What only a GPU can show: both CUDA libraries, the kernel, and an engine, on the real thing."""

import importlib
import json
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from fill import make_images
from graphs import metadata, save_detector

from rfdetr_edge import BackendError, BackendUnavailable
from rfdetr_edge.backends import open_image_session, open_session
from rfdetr_edge.cuda.driver import probe_driver
from rfdetr_edge.cuda.preprocess import DevicePreprocessor, compile_kernel
from rfdetr_edge.engine_record import EngineRecord, write_record
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import preprocess, preprocess_batch

try:
    GPU = probe_driver().gpus[0]
except BackendUnavailable as error:
    pytest.skip(f"no GPU: {error}", allow_module_level=True)

CASES = json.loads(str(np.load(Path(__file__).parents[1] / "golden/preprocess.npz")["cases"]))


@pytest.fixture(params=["pycuda", "cudabindings"])
def cuda(request):
    library = {"pycuda": "pycuda", "cudabindings": "cuda.bindings"}[request.param]
    pytest.importorskip(library)
    opened = importlib.import_module(f"rfdetr_edge.cuda.{request.param}").open_cuda()
    yield opened
    opened.close()


def there_and_back(cuda, numbers):
    """Up and down again through a stream, on whatever thread this is."""
    with cuda.activated():
        stream, event = cuda.stream(), cuda.event()
        device = cuda.device_buffer(numbers.nbytes)
        up, down = cuda.pinned_buffer(numbers.nbytes), cuda.pinned_buffer(numbers.nbytes)
        up.array.view(numbers.dtype)[:] = numbers
        cuda.upload(device, up, numbers.nbytes, stream)
        cuda.download(down, device, numbers.nbytes, stream)
        event.record(stream)
        event.synchronize()
        found = down.array.view(numbers.dtype).copy()
        for made in (down, up, device, event, stream):
            made.close()
    return found


def test_memory_goes_up_and_comes_down_on_any_thread(cuda):
    wrong = []

    def work(seed):
        numbers = np.random.default_rng(seed).random(1_000_000, np.float32)
        for _ in range(50):
            if not np.array_equal(there_and_back(cuda, numbers), numbers):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_more_memory_than_there_is_is_our_error(cuda):
    with cuda.activated(), pytest.raises(BackendError, match="memory is full"):
        cuda.device_buffer(1 << 50)


@pytest.mark.parametrize("antialias", [False, True])
def test_the_kernel_equals_the_cpu_path_on_the_goldens(cuda, antialias):
    spec = InputSpec((384, 384), antialias)
    size = 4 * 3 * 384 * 384
    with cuda.activated():
        stream = cuda.stream()
        device, host = cuda.device_buffer(size), cuda.pinned_buffer(size)
        preprocessor = DevicePreprocessor(cuda, spec, compile_kernel(GPU.sm))
        for case in CASES:
            shape = (case["height"], case["width"])
            image = make_images(case["image_seed"], 1, *shape, cell=case["cell"])[0]
            preprocessor.enqueue(image, device.address, stream)
            cuda.download(host, device, size, stream)
            stream.synchronize()
            found = host.array.view(np.float32).reshape(3, 384, 384)
            np.testing.assert_allclose(found, preprocess(image, spec), rtol=0, atol=1e-4)
        for made in (preprocessor, host, device, stream):
            made.close()


def build(onnx, path):
    """An engine of TensorRT-RTX for this GPU, batches of 1 to 4, with its record."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.ILogger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(onnx.read_bytes())
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    profile.set_shape("input", *((batch, 3, 64, 96) for batch in (1, 2, 4)))
    config.add_optimization_profile(profile)
    plan = bytes(builder.build_serialized_network(network, config))
    path.write_bytes(plan)
    record = EngineRecord(
        engine_sha256=sha256(plan).hexdigest(),
        onnx_sha256=sha256(onnx.read_bytes()).hexdigest(),
        family="tensorrt-rtx",
        version=trt.__version__,
        cuda=None,
        driver=None,
        gpu=None,
        sm=None,
        requested="fp32",
        inspected=None,
        batch=(1, 2, 4),
        build_seconds=1.0,
        metadata=metadata().to_json(),
    )
    write_record(path, record)
    return path


def test_an_engine_gives_what_the_onnx_gives_from_several_threads(tmp_path):
    onnx = save_detector(tmp_path / "model.onnx", batch=None)
    session, reference = open_session(build(onnx, tmp_path / "model.engine")), open_session(onnx)
    batches = [
        np.random.default_rng(seed).random((1 + seed % 6, 3, 64, 96), np.float32)
        for seed in range(12)
    ]
    expected = [reference.run({"input": batch}) for batch in batches]
    failures = []

    def work(first):
        for index in range(first, 200):
            turn = index % len(batches)
            found = session.run({"input": batches[turn]})
            for name, array in found.items():
                if not np.allclose(array, expected[turn][name], rtol=1e-2, atol=1e-3):
                    failures.append((turn, name))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close()
    assert failures == []


def test_frames_that_the_gpu_preprocesses_give_what_the_cpus_tensors_give(tmp_path):
    onnx = save_detector(tmp_path / "model.onnx", batch=None)
    session = open_image_session(build(onnx, tmp_path / "model.engine"))
    spec = InputSpec((64, 96), antialias=True)
    run = session.image_run(spec)
    for sizes in (((40, 60),), ((1080, 1920), (8, 9), (40, 60)), ((1080, 1920),) * 9):
        images = [make_images(seed, 1, *size, cell=7)[0] for seed, size in enumerate(sizes)]
        expected = session.run({"input": preprocess_batch(images, spec)})
        for name, array in run(images).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-2, atol=1e-3)
    session.close()
