"""The kernel's own source, compiled for the CPU and run through its launcher, on the goldens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fill import make_images

from rfdetr_edge import BackendError, BackendUnavailable, InputError
from rfdetr_edge.cuda import preprocess as gpu
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import axis_taps, preprocess

TESTS = Path(__file__).parents[1]
CASES = json.loads(str(np.load(TESTS / "golden/preprocess.npz")["cases"]))
# Turing, Ampere (A100; RTX 30; Orin), Ada, Hopper, Thor, RTX 50
SMS = ("75", "80", "86", "87", "89", "90", "110", "120")


class Gpu:
    """A preprocessor with memory for its tensor."""

    def __init__(self, kernel, spec):
        self.cuda = FakeCuda({"preprocess": kernel})
        self.shape = (3, *spec.resolution)
        self.bytes = 4 * int(np.prod(self.shape))
        with self.cuda.activated():
            self.stream = self.cuda.stream()
            self.device = self.cuda.device_buffer(self.bytes)
            self.host = self.cuda.pinned_buffer(self.bytes)
            self.preprocessor = gpu.DevicePreprocessor(self.cuda, spec, b"compiled")

    def __call__(self, image):
        with self.cuda.activated():
            self.preprocessor.enqueue(image, self.device.address, self.stream)
            self.cuda.download(self.host, self.device, self.bytes, self.stream)
            self.stream.synchronize()
        return self.host.array.view(np.float32).reshape(self.shape).copy()

    def close(self):
        with self.cuda.activated():
            for made in (self.preprocessor, self.host, self.device, self.stream):
                made.close()
        self.cuda.close()
        assert self.cuda.faults == []


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("resolution", [384, 512])
def test_the_kernel_equals_the_cpu_path_on_the_goldens(kernel, resolution, antialias):
    spec = InputSpec((resolution, resolution), antialias)
    run = Gpu(kernel, spec)
    for case in CASES:
        height, width = case["height"], case["width"]
        image = make_images(case["image_seed"], 1, height, width, cell=case["cell"])[0]
        np.testing.assert_allclose(run(image), preprocess(image, spec), rtol=0, atol=1e-4)
    run.close()


@pytest.mark.parametrize("antialias", [False, True])
def test_colour_order_strides_and_means_are_those_of_the_cpu_path(kernel, antialias):
    spec = InputSpec((30, 50), antialias, mean=(0.1, 0.5, 0.25), std=(1.0, 0.5, 0.25))
    run = Gpu(kernel, spec)
    rgb = make_images(7, 1, 48, 64, cell=5)[0]
    bgr = rgb[..., ::-1].copy()
    for view in (rgb, bgr[..., ::-1], bgr, rgb[::-1, ::-1], np.asfortranarray(rgb), rgb[3:, 5:]):
        np.testing.assert_allclose(run(view), preprocess(view, spec), rtol=0, atol=1e-5)
    run.close()


def test_a_frame_of_another_size_or_colour_leaves_nothing_of_the_one_before(kernel):
    spec = InputSpec((16, 24), antialias=True)
    run = Gpu(kernel, spec)
    rng = np.random.default_rng(0)
    for shape in ((40, 60), (40, 60), (1, 1), (200, 3), (3, 200), (40, 60)):
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        np.testing.assert_allclose(run(image), preprocess(image, spec), rtol=0, atol=1e-5)
    made = run.cuda.calls.count("cuMemAlloc")
    run(image)
    assert run.cuda.calls.count("cuMemAlloc") == made
    run.close()


def test_frames_that_follow_at_once_do_not_overwrite_each_other(kernel):
    """Nothing waits between them but the preprocessor itself."""
    spec = InputSpec((16, 24), antialias=False)
    run = Gpu(kernel, spec)
    first, second = make_images(3, 2, 40, 60, cell=4)
    with run.cuda.activated():
        run.preprocessor.enqueue(first, run.device.address, run.stream)
        run.cuda.download(run.host, run.device, run.bytes, run.stream)
        run.preprocessor.enqueue(second, run.device.address, run.stream)
        run.stream.synchronize()
    found = run.host.array.view(np.float32).reshape(run.shape)
    np.testing.assert_allclose(found, preprocess(first, spec), rtol=0, atol=1e-5)
    run.close()


def test_only_frames_of_bytes_are_taken():
    gpu.check_frame(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="uint8, not of float32"):
        gpu.check_frame(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(InputError, match="shape"):
        gpu.check_frame(np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize(("source", "target"), [(1, 5), (5, 1), (7, 7), (1080, 384), (3, 512)])
@pytest.mark.parametrize("antialias", [False, True])
def test_taps_lie_in_the_source_and_their_weights_sum_to_one(source, target, antialias):
    taps = axis_taps(source, target, antialias)
    assert taps.first.dtype == np.int32
    assert taps.first.min() >= 0
    assert taps.first.max() + taps.weights.shape[1] <= source
    np.testing.assert_allclose(taps.weights.sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("sm", SMS)
def test_the_kernel_compiles_for_the_gpus_of_the_table(sm):
    if shutil.which("nvcc") is None:
        pytest.skip("no GPU toolkit: nvcc is not installed")
    assert gpu.compile_kernel(sm).startswith(b"\x7fELF")


def test_a_gpu_that_nvcc_does_not_know_is_an_error():
    if shutil.which("nvcc") is None:
        pytest.skip("no GPU toolkit: nvcc is not installed")
    with pytest.raises(BackendError, match=r"cannot compile for sm_12: .*sm_12"):
        gpu.compile_kernel("12")


def test_without_nvcc_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(BackendUnavailable, match="install the CUDA toolkit"):
        gpu.compile_kernel("87")
