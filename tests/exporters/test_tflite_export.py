"""TFLite exports equal torch on both kernels, carry their metadata, and are refused when not."""

import errno
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tflite_graphs
import torch
from checkpoints import save_filled, small_checkpoint
from fill import make_images, normalize

from exporters.onnx_export import export_onnx
from exporters.torch_reference import TorchSession
from rfdetr_edge import Detector
from rfdetr_edge.associated import model_of, read_document, sidecar_path
from rfdetr_edge.backends import open_session
from rfdetr_edge.cli import main
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.errors import ArtifactError, InputError
from trainer.checkpoint import Checkpoint, load_checkpoint

litert_torch = pytest.importorskip("litert_torch")
tflite_export = pytest.importorskip("exporters.tflite.export")
export_tflite, TfliteOptions = tflite_export.export_tflite, tflite_export.TfliteOptions

PROVIDERS = ("xnnpack", "reference")
# of the issue: dets 1e-5, labels 1e-3
TOLERANCES = {"dets": 1e-5, "labels": 1e-3, "masks": 1e-3, "keypoints": 1e-4}


@pytest.fixture(scope="session")
def exported(tiny_checkpoint, tmp_path_factory) -> Path:
    """`tiny`, exported by the command line and compared on one photo."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "photos").mkdir()
    photo = photo_paths()[0]
    (folder / "photos" / photo.name).write_bytes(photo.read_bytes())
    path = folder / "tiny.tflite"
    arguments = ["-o", str(path), "--format", "tflite", "--images", str(folder / "photos")]
    assert main(["export", str(tiny_checkpoint), *arguments, "--notes", "line 7"]) == 0
    return path


def _model(path: Path) -> bytes:
    """The file without its document."""
    return model_of(path.read_bytes())


def _image(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    # no near ties in the ranking of proposals, which rounding would swap
    return {"input": normalize(make_images(2, 1, *shape))}


def _assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert [*found] == [*expected]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=TOLERANCES[name])


@pytest.mark.parametrize("provider", PROVIDERS)
def test_tiny_equals_torch_and_onnx_runtime(exported, tiny_checkpoint, tmp_path, provider):
    checkpoint = load_checkpoint(tiny_checkpoint)
    session = open_session(exported, provider=provider)
    feeds = _image((checkpoint.resolution,) * 2)
    found = session.run(feeds)
    reference = TorchSession(checkpoint, Detector.from_session(session).metadata)
    _assert_equal(found, reference.run(feeds))
    export_onnx(checkpoint, tmp_path / "tiny.onnx", images=None)
    _assert_equal(found, open_session(tmp_path / "tiny.onnx").run(feeds))


def test_the_file_says_what_it_is_inside_and_beside(exported, tiny_checkpoint):
    with Detector(exported) as detector:
        metadata = detector.metadata
        assert [str(spec) for spec in detector._session.inputs] == [
            "input float32 (1, 3, 352, 352)"
        ]
    assert (metadata.variant, metadata.precision, metadata.task) == ("tiny", "fp32", "detection")
    assert metadata.classes.names == ("RBC", "WBC", "Platelets", "__background__")
    assert metadata.provenance.checkpoint_sha256 == load_checkpoint(tiny_checkpoint).sha256
    assert (metadata.provenance.verification, metadata.provenance.notes) == ("passed", "line 7")
    assert metadata.provenance.converter == f"litert-torch {litert_torch.__version__}"
    assert json.loads(sidecar_path(exported).read_text()) == json.loads(read_document(exported))


def test_the_graph_is_one_for_delegates(exported):
    """Linear layers by name, nothing sampled by index, and no tensor of a rank above 4."""
    schema = tflite_graphs.tfl
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    model = schema.ModelT.InitFromPackedBuf(_model(exported))
    graph = model.subgraphs[0]
    codes = [kinds[code.builtinCode] for code in model.operatorCodes]
    count = Counter(codes[node.opcodeIndex] for node in graph.operators)
    assert "CUSTOM" not in count
    # 6 blocks of 6, 2 decoder layers of 8 (query and key are one), 13 in heads and proposals
    assert count["FULLY_CONNECTED"] >= 6 * 6 + 2 * 8 + 10
    assert count["GATHER_ND"] == 2  # logits are not taken: only boxes and memory of the proposals
    names = [tensor.name.decode() for tensor in graph.tensors]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 80
    assert {"input", "dets", "labels", "encoder/Block_3/attention/value"} <= {*names}
    outputs = [index for node in graph.operators for index in node.outputs]
    assert max(len(graph.tensors[index].shape) for index in outputs) <= 4
    assert open_session(exported).partitions <= 3


def test_the_command_line_reads_and_verifies_it(exported, tiny_checkpoint, capsys):
    photos = ["--images", str(exported.parent / "photos")]
    assert main(["verify", str(tiny_checkpoint), str(exported), *photos]) == 0
    assert "tiny.tflite equals" in capsys.readouterr().out
    assert main(["info", str(exported), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["provider"] == "xnnpack"
    assert [tensor["name"] for tensor in description["outputs"]] == ["dets", "labels"]


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("segmentation", None),
        ("keypoint", (64, 96)),
    ],
)
def test_masks_and_keypoints_equal_torch(tmp_path, task, shape):
    checkpoint = small_checkpoint(task)
    path = tmp_path / "model.tflite"
    options = TfliteOptions(shape=shape)
    assert export_tflite(checkpoint, path, options, images=None) == {}
    feeds = _image(shape or (64, 64))
    for provider in PROVIDERS:
        session = open_session(path, provider=provider)
        metadata = Detector.from_session(session).metadata
        assert (metadata.task, metadata.provenance.verification) == (task, "skipped")
        _assert_equal(session.run(feeds), TorchSession(checkpoint, metadata).run(feeds))


@pytest.fixture
def older(tmp_path) -> Path:
    """Where an artifact lies already."""
    path = tmp_path / "model.tflite"
    path.write_text("an older artifact")
    return path


def _refused(path: Path, checkpoint: Checkpoint, message: str, images=None) -> None:
    with pytest.raises(ArtifactError, match=message):
        export_tflite(checkpoint, path, images=images)
    assert path.read_text() == "an older artifact"
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["model.tflite", "model.tflite.rejected"]


def _converts_to(monkeypatch, model: bytes) -> None:
    monkeypatch.setattr(tflite_export, "_converted", lambda *_: model)


def test_a_file_that_differs_is_rejected(exported, older, tiny_checkpoint, monkeypatch):
    _converts_to(monkeypatch, _model(exported))
    checkpoint = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        checkpoint.model.box_head.layers[2].bias += 0.01
    _refused(older, checkpoint, r"(?s)differs from .* on xnnpack: .*lost", photo_paths()[:1])
    kept = older.with_name("model.tflite.rejected").rename(older.with_name("kept.tflite"))
    assert Detector(kept).metadata.provenance.verification == "skipped"


def test_a_file_that_gives_nan_is_rejected(exported, older, tiny_checkpoint, monkeypatch):
    spoilt = tflite_graphs.tfl.ModelT.InitFromPackedBuf(_model(exported))
    largest = max(spoilt.buffers, key=lambda buffer: 0 if buffer.data is None else buffer.data.size)
    largest.data = np.full(largest.data.size // 4, np.nan, np.float32).view(np.uint8)
    _converts_to(monkeypatch, tflite_graphs.packed(spoilt))
    _refused(older, load_checkpoint(tiny_checkpoint), "gave NaN or infinity on xnnpack")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": "FlexErf"}, "operators that LiteRT does not have: FlexErf"),
        ({}, r"dets float32 \(1, 484, 4\).* instead of .*dets float32 \(1, 60, 4\)"),
        ({"outputs": ("labels", "dets")}, "instead of"),
        ({"layout": "nhwc", "batch": None}, "instead of"),
    ],
)
def test_other_operators_names_and_shapes_are_rejected(
    older, tiny_checkpoint, monkeypatch, options, message
):
    _converts_to(monkeypatch, tflite_graphs.detector(resolution=(352, 352), **options))
    _refused(older, load_checkpoint(tiny_checkpoint), message)


def test_weights_that_give_nan_are_the_checkpoints_fault(
    exported, older, tiny_checkpoint, monkeypatch
):
    _converts_to(monkeypatch, _model(exported))
    checkpoint = load_checkpoint(tiny_checkpoint)
    torch.nn.init.constant_(checkpoint.model.class_head.bias, float("nan"))
    with pytest.raises(ArtifactError, match="checkpoint gives NaN"):
        export_tflite(checkpoint, older, images=photo_paths()[:1])
    assert [file.name for file in older.parent.iterdir()] == ["model.tflite"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_export_cut_short_leaves_the_older_file(older, tiny_checkpoint, monkeypatch, error):
    def interrupted(*_, **__):
        raise error

    monkeypatch.setattr(tflite_export.litert_torch, "convert", interrupted)
    with pytest.raises(error):
        export_tflite(load_checkpoint(tiny_checkpoint), older, images=None)
    assert [file.name for file in older.parent.iterdir()] == ["model.tflite"]
    assert older.read_text() == "an older artifact"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("many\nlines\nLowering not found: aten.x\n"),
            "Error: Lowering not found: at",
        ),
        (AssertionError(), "AssertionError: no reason given; install the versions of constraints"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("can't allocate memory\nsomewhere"), "there is not enough memory"),
    ],
)
def test_a_converter_that_fails_is_one_clear_error(
    older, tiny_checkpoint, monkeypatch, capsys, error, message
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(tflite_export.litert_torch, "convert", fails)
    command = ["export", str(tiny_checkpoint), "-o", str(older), "--format", "tflite"]
    assert main(command) == (2 if "memory" in message else 1)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [file.name for file in older.parent.iterdir()] == ["model.tflite"]


def test_a_full_disk_is_named_and_leaves_the_older_file(
    exported, older, tiny_checkpoint, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    _converts_to(monkeypatch, _model(exported))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left .*/model\.tflite'"):
        export_tflite(load_checkpoint(tiny_checkpoint), older, images=None)
    assert [file.name for file in older.parent.iterdir()] == ["model.tflite"]
    assert older.read_text() == "an older artifact"


def test_a_sidecar_that_cannot_be_written_leaves_the_older_file(
    exported, older, tiny_checkpoint, monkeypatch
):
    _converts_to(monkeypatch, _model(exported))
    sidecar_path(older).mkdir()
    with pytest.raises(InputError, match=r"cannot write .*model\.tflite\.json"):
        export_tflite(load_checkpoint(tiny_checkpoint), older, images=None)
    assert older.read_text() == "an older artifact"


def test_a_shape_that_does_not_fit_is_named(tiny_checkpoint, older):
    options = TfliteOptions(shape=(300, 384))
    with pytest.raises(InputError, match="multiples of 32; the nearest is 288 384"):
        export_tflite(load_checkpoint(tiny_checkpoint), older, options, images=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "tensorrt"], "TensorRT reads no .tflite"),
        (["--precision", "int8"], "needs images that fix its scales"),
        (["--precision", "int8", "--calibration", "missing"], "there is no missing to calibrate"),
        (["--precision", "fp16", "--max-drop", "1"], "--max-drop needs annotated images"),
        (["--opset", "18"], "--opset is for --format onnx"),
        (["--batch", "dynamic"], "takes one image a run"),
        (["--batch", "2"], "takes one image a run"),
        (["--validation", "x"], "--validation is for lower precision"),
        (["--onnx2tf-python", "x"], "--onnx2tf-python is for --converter onnx2tf"),
        (["-o", "model.onnx"], "must end in .tflite, not 'model.onnx'"),
    ],
)
def test_options_of_the_other_format_are_refused(tiny_checkpoint, capsys, options, message):
    arguments = ["export", str(tiny_checkpoint), "-o", "model.tflite", "--format", "tflite"]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow  # 2 minutes and 2 GB
def test_nano_equals_onnx_runtime(tmp_path):
    checkpoint = load_checkpoint(save_filled(tmp_path / "nano.pth", "nano", 91, None))
    seen = export_tflite(checkpoint, tmp_path / "nano.tflite", images=photo_paths()[:1])
    assert [*seen] == [*PROVIDERS]
    export_onnx(checkpoint, tmp_path / "nano.onnx", images=None)
    feeds = _image((384, 384))
    expected = open_session(tmp_path / "nano.onnx").run(feeds)
    for provider in PROVIDERS:
        found = open_session(tmp_path / "nano.tflite", provider=provider).run(feeds)
        _assert_equal(found, expected)
        slots = np.abs(found["labels"] - expected["labels"]).max(axis=-1) > 0.05
        assert not slots.any()
