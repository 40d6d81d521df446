"""Exports equal torch, carry their metadata, and are refused when they do not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_filled
from fill import make_images, normalize

from exporters import onnx_export
from exporters.onnx_export import OnnxOptions, export_onnx
from exporters.torch_reference import TorchSession
from rfdetr_edge import Detector
from rfdetr_edge.backends import open_session
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.errors import ArtifactError, InputError
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.model.rfdetr import RFDETR

# Neighbours in the ranking of proposals that are closer than this may change places by rounding.
DECIDED = 2.5e-5


def _ranking_gaps(model: RFDETR, tensor: torch.Tensor) -> torch.Tensor:
    """The smallest distance between neighbours in the ranking of proposals, by image."""
    seen = []
    hook = model.proposals[0].class_head.register_forward_hook(
        lambda _module, _inputs, logits: seen.append(logits)
    )
    with torch.no_grad():
        model(tensor)
    hook.remove()
    ranked = seen[0].max(-1).values.sort(dim=1, descending=True).values
    ranked = ranked[:, : model.variant.num_queries + 1]
    return (ranked[:, :-1] - ranked[:, 1:]).amin(1)


def _decided_images(model: RFDETR, count: int, shape: tuple[int, int]) -> np.ndarray:
    found: list[np.ndarray] = []
    for seed in range(200):
        image = normalize(make_images(seed, 1, *shape))
        if _ranking_gaps(model, torch.from_numpy(image)).item() > DECIDED:
            found.append(image)
        if len(found) == count:
            return np.concatenate(found)
    raise AssertionError("no image without near ties")


def _assert_equals_torch(checkpoint: Checkpoint, path: Path, batch: int, shape: tuple[int, int]):
    feeds = {"input": _decided_images(checkpoint.model, batch, shape)}
    session = open_session(path)
    metadata = Detector.from_session(session).metadata
    expected = TorchSession(checkpoint.model, metadata).run(feeds)
    found = session.run(feeds)
    np.testing.assert_allclose(found["dets"], expected["dets"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["labels"], expected["labels"], rtol=0, atol=1e-4)
    assert [spec.name for spec in session.outputs] == ["dets", "labels"]


CASES = [
    pytest.param(1, (1,), None, id="static"),
    pytest.param(2, (2,), None, id="static-2"),
    pytest.param("dynamic", (1, 3), None, id="dynamic"),
    pytest.param("dynamic", (1, 3), (256, 384), id="dynamic-non-square"),
    pytest.param("dynamic", (1, 3), (32, 64), id="dynamic-fewer-cells-than-queries"),
]


def _check_export(checkpoint: Checkpoint, tmp_path: Path, batch, sizes, shape):
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, OnnxOptions(batch=batch, shape=shape), images=None)
    side = checkpoint.resolution
    for size in sizes:
        _assert_equals_torch(checkpoint, path, size, shape or (side, side))


@pytest.mark.parametrize(("batch", "sizes", "shape"), CASES)
def test_tiny_equals_torch(tiny_checkpoint, tmp_path, batch, sizes, shape):
    _check_export(load_checkpoint(tiny_checkpoint), tmp_path, batch, sizes, shape)


@pytest.mark.parametrize(("batch", "sizes", "shape"), CASES)
def test_nano_equals_torch(tmp_path, batch, sizes, shape):
    path = save_filled(tmp_path / "nano.pth", "nano", 91, None)
    _check_export(load_checkpoint(path), tmp_path, batch, sizes, shape)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["base", "large-deprecated"])
def test_variants_with_other_tables_and_levels_equal_torch(tmp_path, variant):
    path = save_filled(tmp_path / "model.pth", variant, 91, None)
    _check_export(load_checkpoint(path), tmp_path, 1, (1,), None)


@pytest.mark.parametrize("opset", [18, 19, 20])
def test_other_opsets_equal_torch(tiny_checkpoint, tmp_path, opset):
    checkpoint = load_checkpoint(tiny_checkpoint)
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, OnnxOptions(opset=opset), images=None)
    _assert_equals_torch(checkpoint, path, 1, (checkpoint.resolution,) * 2)


def test_the_metadata_says_what_the_artifact_is(tiny_checkpoint, tmp_path):
    path = tmp_path / "model.onnx"
    checkpoint = load_checkpoint(tiny_checkpoint)
    notes = {"line": 7}
    comparison = export_onnx(checkpoint, path, OnnxOptions(notes=notes), images=photo_paths())
    assert comparison is not None
    assert comparison.pairs > 0
    with Detector(path) as detector:
        metadata = detector.metadata
    assert metadata.variant == "tiny"
    assert metadata.input.resolution == (checkpoint.resolution,) * 2
    assert metadata.classes.names == ("RBC", "WBC", "Platelets", "__background__")
    assert metadata.num_select == checkpoint.variant.num_select
    assert metadata.provenance.checkpoint_sha256 == checkpoint.sha256
    assert metadata.provenance.verification == "passed"
    assert metadata.provenance.notes == notes


def test_without_the_gate_the_metadata_says_so(tiny_checkpoint, tmp_path):
    path = tmp_path / "model.onnx"
    options = OnnxOptions(antialias=False)
    assert export_onnx(load_checkpoint(tiny_checkpoint), path, options, images=None) is None
    with Detector(path) as detector:
        assert detector.metadata.provenance.verification == "skipped"
        assert detector.metadata.input.antialias is False


def test_an_export_that_differs_is_rejected(tiny_checkpoint, tmp_path, monkeypatch):
    fixed = onnx_export._fixed

    def spoilt(*arguments):
        copied = fixed(*arguments)
        with torch.no_grad():
            copied.box_head.layers[2].bias += 0.01
        return copied

    monkeypatch.setattr(onnx_export, "_fixed", spoilt)
    path = tmp_path / "model.onnx"
    path.write_text("an older artifact")
    with pytest.raises(ArtifactError, match="differs from the checkpoint"):
        export_onnx(load_checkpoint(tiny_checkpoint), path, images=photo_paths())
    assert path.read_text() == "an older artifact"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.rejected"]
    (tmp_path / "model.onnx.rejected").rename(path)
    with Detector(path) as detector:
        assert detector.metadata.provenance.verification == "skipped"


def test_weights_that_give_nan_are_the_checkpoints_fault(tiny_checkpoint, tmp_path):
    checkpoint = load_checkpoint(tiny_checkpoint)
    torch.nn.init.constant_(checkpoint.model.class_head.bias, float("nan"))
    with pytest.raises(ArtifactError, match="checkpoint gives NaN"):
        export_onnx(checkpoint, tmp_path / "model.onnx", images=photo_paths())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (OnnxOptions(shape=(300, 384)), "multiples of 32; the nearest is 288 384"),
        (OnnxOptions(shape=(0, 32)), "multiples of 32"),
        (OnnxOptions(batch=0), "at least 1"),
        (OnnxOptions(opset=11), "17 to 20"),
        (OnnxOptions(notes=float("nan")), "notes are no JSON value"),
        (OnnxOptions(notes={1, 2}), "notes are no JSON value"),
    ],
)
def test_options_that_do_not_fit_are_named(tiny_checkpoint, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "x.onnx", options, images=None)
