import numpy as np
import pytest
from graphs import metadata, save_classifier, save_detector

from rfdetr_edge import ArtifactError, BackendError, BackendUnavailable, InputError
from rfdetr_edge.backends import open_session

ort = pytest.importorskip("onnxruntime")


@pytest.fixture
def artifact(tmp_path):
    return save_detector(tmp_path / "model.onnx", batch=None, metadata_json=metadata().to_json())


def test_the_session_tells_its_tensors_and_carries_the_metadata(artifact):
    session = open_session(artifact)
    assert [str(spec) for spec in (*session.inputs, *session.outputs)] == [
        "input float32 (?, 3, 64, 96)",
        "dets float32 (?, 24, 4)",
        "labels float32 (?, 24, 4)",
    ]
    assert session.metadata_json == metadata().to_json()


def test_a_file_without_metadata_has_none(tmp_path):
    assert open_session(save_detector(tmp_path / "bare.onnx")).metadata_json is None


@pytest.mark.parametrize("provider", [None, "cpu", "CPU", "CPUExecutionProvider"])
def test_the_provider_that_runs_is_reported(artifact, provider):
    if provider is None and "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build offers more than the CPU")
    assert open_session(artifact, provider=provider).provider == "cpu"


def test_a_provider_that_runs_no_detector_is_not_offered(artifact, monkeypatch):
    """Azure starts, gives every node to the CPU, and would be reported as what runs."""
    offered = ["AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    with pytest.raises(BackendUnavailable, match=r"'azure' cannot be used.*offers cpu$"):
        open_session(artifact, provider="azure")


def test_a_provider_that_the_build_lacks_is_refused(artifact):
    with pytest.raises(BackendUnavailable, match=r"'qnn' cannot be used.*offers .*cpu"):
        open_session(artifact, provider="qnn")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(BackendUnavailable, match=r"rfdetr-edge\[onnx-gpu\]"):
            open_session(artifact, provider="cuda")


def test_an_unknown_provider_is_refused(artifact):
    with pytest.raises(InputError, match="knows no provider 'gpu'"):
        open_session(artifact, provider="gpu")


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("provider", [None, "cuda"])
def test_a_provider_that_does_not_start_is_no_silent_fallback(artifact, monkeypatch, provider):
    """ONNX Runtime goes on with the CPU when a listed provider cannot be loaded."""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("CUDA may really start here")
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    with pytest.raises(BackendError, match=r"could not start cuda.*provider='cpu'"):
        open_session(artifact, provider=provider)


@pytest.mark.parametrize("cut", [0, 1, 100, 300, -1])
def test_a_truncated_file_is_an_artifact_error(artifact, cut):
    artifact.write_bytes(artifact.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=r"model\.onnx is no ONNX file"):
        open_session(artifact)


def test_a_text_is_an_artifact_error(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(ArtifactError, match="is no ONNX file"):
        open_session(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.onnx", "does not exist"),
        ("folder.onnx", "is a folder"),
        ("model.engine", r"the artifact .*model\.engine does not exist.*a \.engine file"),
        (
            "model.pt",
            r"runs \.pt files.*onnxrt \(\.onnx\), litert \(\.tflite\), tensorrt \(\.engine\)",
        ),
        ("model", "suffixless"),
    ],
)
def test_a_path_that_cannot_be_opened_says_why(tmp_path, name, message):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ArtifactError, match=message):
        open_session(tmp_path / name)


def test_options_that_do_not_exist_are_refused(artifact):
    with pytest.raises(InputError, match="no backend 'trt'; choose one of onnxrt, litert"):
        open_session(artifact, backend="trt")
    for threads in (0, 100_000):
        with pytest.raises(InputError, match=f"threads must be 1 to 1024, not {threads}"):
            open_session(artifact, threads=threads)


def test_a_named_backend_overrules_the_suffix_and_threads_do_not_change_results(artifact):
    renamed = artifact.rename(artifact.with_suffix(".bin"))
    feeds = {"input": np.random.default_rng(1).random((2, 3, 64, 96), np.float32)}
    one = open_session(renamed, backend="onnxrt", threads=1).run(feeds)
    two = open_session(renamed, backend="onnxrt", threads=2).run(feeds)
    for name in ("dets", "labels"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6)


def test_any_image_model_opens(tmp_path):
    outputs = open_session(save_classifier(tmp_path / "other.onnx")).outputs
    assert [spec.name for spec in outputs] == ["scores"]
