"""The network equals upstream's, number by number (tests/golden/README.md), and trains."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import digest, fill_state_dict, make_images, normalize
from torch import Tensor

from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint_names import from_file_names, to_file_names
from trainer.config import train_config
from trainer.losses import detection_losses, total_loss
from trainer.model.output import MaskFactors, ModelOutput
from trainer.model.rfdetr import RFDETR
from trainer.targets import Target

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = VARIANTS["tiny"]
SEG, KEYPOINT = VARIANTS["seg-tiny"], VARIANTS["keypoint-tiny"]
DETECTION = ("nano", "small", "medium", "base", "large", "large-deprecated")
SEGMENTATION = ("seg-nano", "seg-small", "seg-medium", "seg-preview", "seg-large", "seg-xlarge")
KEYPOINTS = ("keypoint-preview", "keypoint-preview-multi")


@dataclass(frozen=True)
class Case:
    """One variant's expected values beside what our network gives for the same input."""

    golden: dict[str, np.ndarray]
    output: ModelOutput
    ranking: torch.return_types.topk


def _read_manifest(name: str) -> dict:
    return json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())


def _build(manifest: dict) -> RFDETR:
    """The network that a manifest lists, which may have other settings than its variant."""
    changed = manifest.get("config_overrides", {})
    variant = VARIANTS[manifest["variant"]]
    variant = replace(variant, num_queries=changed.get("num_queries", variant.num_queries))
    counts = changed.get("num_keypoints_per_class", ())
    return RFDETR(variant, changed.get("num_classes", 90) + 1, counts)


def _filled(model: RFDETR) -> RFDETR:
    """The model with weights of no special values, as training leaves them."""
    shapes = {name: tensor.shape for name, tensor in to_file_names(model.state_dict()).items()}
    filled = from_file_names(fill_state_dict(shapes))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in filled.items()})
    return model


def _images(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.from_numpy(normalize(make_images(0, batch, height, width)))


@pytest.fixture(scope="module", params=[*DETECTION, *SEGMENTATION, *KEYPOINTS])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    golden = dict(np.load(GOLDEN / f"{request.param}-s0.npz"))
    meta, manifest = json.loads(str(golden["meta"])), _read_manifest(request.param)
    weights = fill_state_dict(manifest, meta["seed"])
    assert digest(weights) == meta["fill_digest"]
    model = _build(manifest).eval()
    model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in from_file_names(weights).items()}
    )
    rankings = []
    model.proposals[0].class_head.register_forward_hook(
        lambda _module, _input, logits: rankings.append(
            logits.amax(dim=-1).topk(meta["num_queries"])
        )
    )
    size = meta["height"], meta["width"]
    images = np.concatenate([make_images(seed, 1, *size) for seed in meta["image_seeds"]])
    with torch.no_grad():
        output = model(torch.from_numpy(normalize(images)))
    return Case(golden, output, rankings[0])


def test_proposals_are_ranked_as_upstream_ranks_them(case):
    np.testing.assert_array_equal(case.ranking.indices, case.golden["topk_indices"])
    np.testing.assert_allclose(case.ranking.values, case.golden["topk_values"], atol=2e-4)


def test_predictions_equal_upstream(case):
    np.testing.assert_allclose(case.output.final.boxes, case.golden["pred_boxes"], atol=2e-5)
    np.testing.assert_allclose(case.output.final.logits, case.golden["pred_logits"], atol=2e-4)


def test_proposals_and_earlier_layers_equal_upstream(case):
    proposals, golden = case.output.proposals, case.golden
    np.testing.assert_allclose(proposals.boxes, golden["enc_boxes"], atol=2e-5)
    np.testing.assert_allclose(proposals.logits[:, :32], golden["enc_logits_first32"], atol=2e-4)
    for index, layer in enumerate(case.output.layers[:-1]):
        expected = golden[f"aux{index}_boxes_first16"], golden[f"aux{index}_logits_first4"]
        np.testing.assert_allclose(layer.boxes[:, :16], expected[0], atol=2e-5)
        np.testing.assert_allclose(layer.logits[:, :4], expected[1], atol=2e-4)
    assert f"aux{len(case.output.layers) - 1}_boxes_first16" not in golden


@pytest.mark.parametrize("case", SEGMENTATION, indirect=True)
def test_masks_equal_upstream(case):
    masks, golden = case.output.final.masks, case.golden
    assert masks.shape == tuple(golden["pred_masks_shape"])
    np.testing.assert_allclose(masks[:, :4], golden["pred_masks_first4"], atol=1e-3)
    np.testing.assert_allclose(masks.mean(dim=(2, 3)), golden["pred_masks_mean"], atol=1e-4)
    np.testing.assert_allclose(
        masks.std(dim=(2, 3), correction=0), golden["pred_masks_std"], atol=1e-3
    )
    proposed = case.output.proposals.masks.dense().detach()[:, :1]
    np.testing.assert_allclose(proposed, golden["enc_masks_first1"], atol=1e-3)
    assert all(isinstance(layer.masks, MaskFactors) for layer in case.output.layers[:-1])


@pytest.mark.parametrize("case", KEYPOINTS, indirect=True)
def test_keypoints_equal_upstream(case):
    keypoints, golden = case.output.final.keypoints, case.golden
    np.testing.assert_allclose(keypoints, golden["pred_keypoints"], atol=1e-4)
    proposed = case.output.proposals.keypoints[:, :16]
    np.testing.assert_allclose(proposed, golden["enc_keypoints_first16"], atol=1e-4)


@pytest.mark.parametrize("variant", sorted(path.stem for path in (GOLDEN / "manifests").iterdir()))
def test_tensors_have_upstream_names_and_shapes(variant):
    manifest = _read_manifest(variant)
    with torch.device("meta"):
        model = _build(manifest)
    ours = {name: list(t.shape) for name, t in to_file_names(model.state_dict()).items()}
    expected = {n: s for n, s in manifest["state_dict"].items() if n not in manifest["buffers"]}
    assert ours == expected
    assert sum(p.numel() for p in model.parameters()) == manifest["num_parameters"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rename_table_goes_both_ways(variant):
    with torch.device("meta"):
        names = {name: name for name in RFDETR(VARIANTS[variant], slots=3).state_dict()}
    assert from_file_names(to_file_names(names)) == names


@pytest.mark.parametrize("variant", [TINY, SEG, KEYPOINT], ids=lambda variant: variant.name)
def test_training_predicts_for_every_group_of_queries(variant):
    output = RFDETR(variant, slots=4).train()(_images(128, 128, batch=2))
    queries = variant.groups * variant.num_queries
    assert len(output.layers) == variant.decoder_layers
    for prediction in (*output.layers, output.proposals):
        assert prediction.boxes.shape == (2, queries, 4)
        assert prediction.logits.shape == (2, queries, 4)
        if variant.task == "segmentation":
            assert prediction.masks.spatial.shape == (2, variant.hidden_dim, 32, 32)
            assert prediction.masks.query.shape == (2, queries, variant.hidden_dim)
        if variant.task == "keypoint":
            assert prediction.keypoints.shape == (2, queries, 17, 8)


@pytest.mark.parametrize("variant", [TINY, SEG, KEYPOINT], ids=lambda variant: variant.name)
def test_the_first_group_predicts_in_training_what_it_predicts_in_evaluation(variant):
    model, images = _filled(RFDETR(variant, slots=4)), _images(128, 128)
    with torch.no_grad():
        alone, together = model.eval()(images), model.train()(images)
    for one, all_groups in zip(
        [alone.proposals, *alone.layers], [together.proposals, *together.layers], strict=True
    ):
        for name in ("boxes", "logits", "keypoints"):
            expected, found = getattr(one, name), getattr(all_groups, name)
            if expected is not None:
                first = found[:, : variant.num_queries]
                torch.testing.assert_close(first, expected, atol=1e-4, rtol=0)
    if variant.task == "segmentation":
        first = together.final.masks.dense()[:, : variant.num_queries]
        torch.testing.assert_close(first, alone.final.masks, atol=1e-4, rtol=0)


def test_keypoints_of_a_background_first_schema_are_those_of_the_second_class():
    images = _images(128, 128)
    with torch.no_grad():
        first = _filled(RFDETR(KEYPOINT, 4, (5,))).eval()(images).final
        second = _filled(RFDETR(KEYPOINT, 4, (0, 5))).eval()(images).final
    assert second.keypoints.shape == (1, KEYPOINT.num_queries, 10, 8)
    assert not second.keypoints[:, :, :5].any()
    torch.testing.assert_close(second.keypoints[:, :, 5:], first.keypoints, atol=0, rtol=0)
    share = first.keypoints[..., 7].sum(dim=-1)
    assert share.abs().max() > 0.1
    moved = second.logits - first.logits
    torch.testing.assert_close(moved[..., 0], -share, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., 1], share, atol=1e-5, rtol=0)
    assert not moved[..., 2:].any()


def test_keypoints_of_one_class_do_not_see_those_of_another():
    model = _filled(RFDETR(KEYPOINT, 4, (3, 2))).eval()
    layer = model.decoder.keypoints.layers[0]
    seen = model.decoder.keypoints.visible
    queries, points = torch.randn(1, 1, 128), torch.randn(1, 1, 5, 128)
    changed = points.clone()
    changed[0, 0, 4] += 1
    with torch.no_grad():
        query, before = layer.attend(queries, points, torch.zeros(6, 128), seen)
        other, after = layer.attend(queries, changed, torch.zeros(6, 128), seen)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.isclose(before[:, :, 3], after[:, :, 3]).all()
    assert not torch.equal(query, other)


def test_keypoints_that_are_not_finite_become_zero():
    model = _filled(RFDETR(KEYPOINT, slots=4)).eval()
    with torch.no_grad():
        model.keypoints.head.layers[-1].bias[5] = float("nan")
        found = model(_images(128, 128)).final
    assert not found.keypoints[..., 5].any()
    assert found.keypoints[..., 4].all()
    assert found.logits.isfinite().all()


@pytest.mark.parametrize("variant", [TINY, SEG, KEYPOINT], ids=lambda variant: variant.name)
@pytest.mark.parametrize(("height", "width"), [(96, 160), (160, 96)])
def test_an_input_need_not_be_square(variant, height, width):
    model = _filled(RFDETR(replace(variant, num_queries=20), slots=4)).eval()
    with torch.no_grad():
        boxes, logits, masks, keypoints = model(_images(height, width)).final
    assert boxes.shape == logits.shape == (1, 20, 4)
    assert boxes.isfinite().all()
    assert logits.isfinite().all()
    if variant.task == "segmentation":
        assert masks.shape == (1, 20, height // 4, width // 4)
    if variant.task == "keypoint":
        assert keypoints.shape == (1, 20, 17, 8)


@pytest.mark.parametrize("training", [False, True])
def test_queries_beyond_the_memory_keep_their_learned_boxes(training):
    variant = replace(TINY, num_queries=20, groups=3)
    model = _filled(RFDETR(variant, slots=4)).train(training)
    references = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: references.append(inputs[1]))
    cells = (64 // variant.patch_size) ** 2
    with torch.no_grad():
        output = model(_images(64, 64))
    groups = 3 if training else 1
    assert output.proposals.boxes.shape == (1, groups * cells, 4)
    assert output.final.boxes.shape == (1, groups * 20, 4)
    learned = model.query_boxes.weight[: groups * 20].unflatten(0, (groups, 20))
    spare = references[0].unflatten(1, (groups, 20))[0, :, cells:]
    torch.testing.assert_close(spare, learned[:, cells:], atol=0, rtol=0)


def test_fixing_the_grid_changes_nothing():
    model, images = _filled(RFDETR(TINY, slots=4)).eval(), _images(128, 192)
    with torch.no_grad():
        before = model(images).final
        model.encoder.fix_grid(128 // TINY.patch_size, 192 // TINY.patch_size)
        after = model(images).final
    assert model.encoder.positions.shape == (1, 1 + 8 * 12, TINY.encoder.width)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("variant", "counts"),
    [(TINY, ()), (SEG, ()), (KEYPOINT, (3, 0, 2))],
    ids=["tiny", "seg-tiny", "keypoint-tiny"],
)
def test_one_step_reaches_every_parameter(variant, counts):
    model = _filled(RFDETR(variant, 4, counts)).train()
    box = torch.tensor([[0.4, 0.5, 0.2, 0.3]])
    mask, points = torch.zeros(1, 32, 32, dtype=torch.bool), torch.full((1, 3, 3), 0.5)
    mask[:, 12:20, 10:16] = True
    points[..., 2] = torch.tensor([0, 1, 2])
    targets = [
        Target(
            boxes=box,
            labels=torch.tensor([label]),
            image_id=label,
            source_size=(128, 128),
            masks=mask if variant.task == "segmentation" else None,
            keypoints=points if variant.task == "keypoint" else None,
        )
        for label in (0, 2)
    ]
    output = model(_images(128, 128, batch=2))
    weights = train_config(variant.task, dataset_dir="data").coefficients
    losses = detection_losses(
        output,
        targets,
        groups=variant.groups,
        keypoint_counts=counts,
        coefficients=weights,
    )
    total_loss(losses, weights).backward()
    # the softmax of attention cancels a key's bias
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or (not parameter.grad.any() and not name.endswith("key.bias"))
    ]
    assert idle == ["encoder.mask_token"]
