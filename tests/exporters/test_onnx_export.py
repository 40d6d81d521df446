"""Exports equal torch, carry their metadata, and are refused when they do not."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import save_filled
from fill import make_images, normalize

from exporters import onnx_export
from exporters.difference import LIMITS
from exporters.onnx_export import OnnxOptions, export_backbone, export_onnx
from exporters.torch_reference import TorchSession
from exporters.verify import compare
from rfdetr_edge import Detector
from rfdetr_edge.backends import open_session
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.errors import ArtifactError, InputError
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.model.rfdetr import RFDETR

# Neighbours in the ranking of proposals that are closer than this may change places by rounding.
DECIDED = 2.5e-5
TOLERANCES = {"dets": 1e-5, "labels": 1e-4, "masks": 1e-3, "keypoints": 1e-4}


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


def _assert_equals_torch(checkpoint: Checkpoint, path: Path, feeds: dict[str, np.ndarray]):
    session = open_session(path)
    metadata = Detector.from_session(session).metadata
    expected = TorchSession(checkpoint, metadata).run(feeds)
    found = session.run(feeds)
    third = {"detection": (), "segmentation": ("masks",), "keypoint": ("keypoints",)}
    assert [*found] == ["dets", "labels", *third[checkpoint.variant.task]]
    for spec in session.outputs:
        assert spec.shape[1:] == found[spec.name].shape[1:]
        atol = TOLERANCES[spec.name]
        np.testing.assert_allclose(found[spec.name], expected[spec.name], rtol=0, atol=atol)


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
    shape = shape or (checkpoint.resolution,) * 2
    for size in sizes:
        _assert_equals_torch(
            checkpoint, path, {"input": _decided_images(checkpoint.model, size, shape)}
        )


@pytest.mark.parametrize(("batch", "sizes", "shape"), CASES)
def test_tiny_equals_torch(tiny_checkpoint, tmp_path, batch, sizes, shape):
    _check_export(load_checkpoint(tiny_checkpoint), tmp_path, batch, sizes, shape)


@pytest.mark.parametrize(("batch", "sizes", "shape"), CASES)
def test_nano_equals_torch(tmp_path, batch, sizes, shape):
    path = save_filled(tmp_path / "nano.pth", "nano", 91, None)
    _check_export(load_checkpoint(path), tmp_path, batch, sizes, shape)


@pytest.mark.parametrize(("batch", "sizes", "shape"), [CASES[0], *CASES[2:]])
@pytest.mark.parametrize("variant", ["seg-tiny", "keypoint-tiny"])
def test_masks_and_keypoints_equal_torch(tmp_path, variant, batch, sizes, shape):
    path = save_filled(tmp_path / "model.pth", variant, 4, None)
    _check_export(load_checkpoint(path), tmp_path, batch, sizes, shape)


@pytest.mark.parametrize("counts", [(5, 0, 3), (0, 17)])
def test_keypoints_of_several_classes_equal_torch(tmp_path, counts):
    path = save_filled(tmp_path / "model.pth", "keypoint-tiny", 4, None, counts)
    checkpoint = load_checkpoint(path)
    _check_export(checkpoint, tmp_path, "dynamic", (2,), None)
    with Detector(tmp_path / "model.onnx") as detector:
        assert detector.metadata.keypoints == checkpoint.schema
        assert detector.metadata.keypoints.counts == counts


@pytest.mark.slow  # 80 s and 5 GB
@pytest.mark.parametrize("batch", [1, "dynamic"])
@pytest.mark.parametrize(
    ("variant", "seeds"),
    [("seg-nano", (1, 0)), ("keypoint-preview", (2, 5))],  # the golden images
)
def test_published_variants_with_masks_and_keypoints_equal_torch(tmp_path, variant, seeds, batch):
    checkpoint = load_checkpoint(save_filled(tmp_path / "model.pth", variant, 91, None))
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, OnnxOptions(batch=batch), images=None)
    shape = (checkpoint.resolution,) * 2
    images = [normalize(make_images(seed, 1, *shape)) for seed in seeds]
    for group in images if batch == 1 else [np.concatenate(images)]:
        _assert_equals_torch(checkpoint, path, {"input": group})


@pytest.mark.parametrize(
    ("variant", "last"),
    [
        ("seg-tiny", "model.mask_head.query_proj.bias"),
        ("keypoint-tiny", "model.keypoints.head.layers.2.bias"),
    ],
)
def test_the_graph_has_standard_operators_and_nothing_of_training(tmp_path, variant, last):
    path = tmp_path / "model.onnx"
    checkpoint = load_checkpoint(save_filled(tmp_path / "model.pth", variant, 4, None))
    export_onnx(checkpoint, path, images=None)
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}
    assert "Einsum" not in {node.op_type for node in graph.node}
    uses = Counter(name for node in graph.node for name in node.input)
    assert uses[last] == 1  # of the last decoder layer alone
    assert not [name for name in uses if "proposal_queries" in name or "proposal_heads" in name]


@pytest.mark.parametrize(
    ("variant", "names"),
    [("seg-tiny", ["features"]), ("keypoint-tiny", ["features", "cross_attn_features"])],
)
def test_a_backbone_gives_every_memory_of_the_decoder(tmp_path, variant, names):
    path = tmp_path / "backbone.onnx"
    checkpoint = load_checkpoint(save_filled(tmp_path / "model.pth", variant, 4, None))
    assert export_backbone(checkpoint, path, OnnxOptions()).startswith("features within")
    assert [value.name for value in onnx.load(path).graph.output] == names


def _spoil(path: Path, initializer: str) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == initializer:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values.flat[0] += 0.05
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("variant", "initializer", "part"),
    [
        ("seg-tiny", "model.mask_head.bias", "mask"),
        ("keypoint-tiny", "model.keypoints.head.layers.2.bias", "points"),
    ],
)
def test_a_file_whose_masks_or_keypoints_differ_fails_the_gate(
    tmp_path, variant, initializer, part
):
    path = tmp_path / "model.onnx"
    checkpoint = load_checkpoint(save_filled(tmp_path / "model.pth", variant, 4, None))
    comparison = export_onnx(checkpoint, path, images=photo_paths()[:1])
    assert comparison.passed
    with Detector(path) as detector:
        reference = TorchSession(checkpoint, detector.metadata)
    _spoil(path, initializer)
    comparison = compare(reference, open_session(path), photo_paths()[:1])
    assert not comparison.passed
    found = comparison.worst._asdict()
    assert found.pop(part) > 2 * LIMITS._asdict()[part]
    assert found["box"] < LIMITS.box
    assert found["score"] < LIMITS.score


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
    image = _decided_images(checkpoint.model, 1, (checkpoint.resolution,) * 2)
    _assert_equals_torch(checkpoint, path, {"input": image})
    # opset 20 has GELU as one operator
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("Gelu" in kinds, "Erf" in kinds) == (opset == 20, opset < 20)


@pytest.mark.parametrize(("batch", "share"), [(1, 0.65), ("dynamic", 0.85)])
def test_the_graph_is_cleaned_unless_it_shall_stay_raw(tiny_checkpoint, tmp_path, batch, share):
    checkpoint = load_checkpoint(tiny_checkpoint)
    path, nodes, found = tmp_path / "model.onnx", [], []
    image = _decided_images(checkpoint.model, 1, (checkpoint.resolution,) * 2)
    for raw in (True, False):
        export_onnx(checkpoint, path, OnnxOptions(batch=batch, raw=raw), images=None)
        nodes.append([node.op_type for node in onnx.load(path).graph.node])
        found.append(open_session(path).run({"input": image}))
    assert len(nodes[1]) < share * len(nodes[0])
    assert not {"Identity", "Constant", "Cast"} & set(nodes[1])
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, rtol=0, atol=1e-5)


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
    fixed = onnx_export.fixed

    def spoilt(*arguments):
        copied = fixed(*arguments)
        with torch.no_grad():
            copied.box_head.layers[2].bias += 0.01
        return copied

    monkeypatch.setattr(onnx_export, "fixed", spoilt)
    path = tmp_path / "model.onnx"
    path.write_text("an older artifact")
    with pytest.raises(ArtifactError, match="differs from its source"):
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
