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
from trainer.losses import detection_losses, total_loss
from trainer.model.output import ModelOutput
from trainer.model.rfdetr import RFDETR
from trainer.targets import Target

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = VARIANTS["tiny"]


@dataclass(frozen=True)
class Case:
    """One variant's expected values beside what our network gives for the same input."""

    golden: dict[str, np.ndarray]
    output: ModelOutput
    ranking: Tensor


def _read_manifest(variant: str) -> dict:
    return json.loads((GOLDEN / "manifests" / f"{variant}.json").read_text())


def _filled(model: RFDETR) -> RFDETR:
    """The model with weights of no special values, as training leaves them."""
    shapes = {name: tensor.shape for name, tensor in to_file_names(model.state_dict()).items()}
    filled = from_file_names(fill_state_dict(shapes))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in filled.items()})
    return model


def _images(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.from_numpy(normalize(make_images(0, batch, height, width)))


@pytest.fixture(
    scope="module", params=["nano", "small", "medium", "base", "large", "large-deprecated"]
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    golden = dict(np.load(GOLDEN / f"{request.param}-s0.npz"))
    meta, manifest = json.loads(str(golden["meta"])), _read_manifest(request.param)
    weights = fill_state_dict(manifest, meta["seed"])
    assert digest(weights) == meta["fill_digest"]
    model = RFDETR(VARIANTS[request.param], slots=91).eval()
    model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in from_file_names(weights).items()}
    )
    rankings = []
    model.proposals[0].class_head.register_forward_hook(
        lambda _module, _input, logits: rankings.append(
            logits.amax(dim=-1).topk(meta["num_queries"]).indices
        )
    )
    size = meta["height"], meta["width"]
    images = np.concatenate([make_images(seed, 1, *size) for seed in meta["image_seeds"]])
    with torch.no_grad():
        output = model(torch.from_numpy(normalize(images)))
    return Case(golden, output, rankings[0])


def test_proposals_are_ranked_as_upstream_ranks_them(case):
    np.testing.assert_array_equal(case.ranking.numpy(), case.golden["topk_indices"])
    values = case.output.proposals.logits.amax(dim=-1).numpy()
    np.testing.assert_allclose(values, case.golden["topk_values"], atol=2e-4)


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


@pytest.mark.parametrize("variant", sorted(path.stem for path in (GOLDEN / "manifests").iterdir()))
def test_tensors_have_upstream_names_and_shapes(variant):
    with torch.device("meta"):
        model = RFDETR(VARIANTS[variant], slots=91)
    manifest = _read_manifest(variant)
    ours = {name: list(t.shape) for name, t in to_file_names(model.state_dict()).items()}
    expected = {n: s for n, s in manifest["state_dict"].items() if n not in manifest["buffers"]}
    assert ours == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rename_table_goes_both_ways(variant):
    with torch.device("meta"):
        names = {name: name for name in RFDETR(VARIANTS[variant], slots=3).state_dict()}
    assert from_file_names(to_file_names(names)) == names


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(KeyError, match="no rule in the rename table"):
        to_file_names({"neck.weight": 0})


def test_training_predicts_for_every_group_of_queries():
    output = RFDETR(TINY, slots=4).train()(_images(128, 128, batch=2))
    queries = TINY.groups * TINY.num_queries
    assert len(output.layers) == TINY.decoder_layers
    for prediction in (*output.layers, output.proposals):
        assert prediction.boxes.shape == (2, queries, 4)
        assert prediction.logits.shape == (2, queries, 4)


def test_the_first_group_predicts_in_training_what_it_predicts_in_evaluation():
    model, images = _filled(RFDETR(TINY, slots=4)), _images(128, 128)
    with torch.no_grad():
        alone, together = model.eval()(images).final, model.train()(images).final
    first = together.boxes[:, : TINY.num_queries]
    torch.testing.assert_close(first, alone.boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(96, 160), (160, 96)])
def test_an_input_need_not_be_square(height, width):
    model = _filled(RFDETR(replace(TINY, num_queries=20), slots=4)).eval()
    with torch.no_grad():
        boxes, logits = model(_images(height, width)).final
    assert boxes.shape == (1, 20, 4)
    assert logits.shape == (1, 20, 4)
    assert boxes.isfinite().all()
    assert logits.isfinite().all()


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


def test_one_step_reaches_every_parameter():
    model = _filled(RFDETR(TINY, slots=4)).train()
    targets = [
        Target(torch.tensor([[0.4, 0.5, 0.2, 0.3]]), torch.tensor([label]), label, (128, 128))
        for label in (0, 2)
    ]
    output = model(_images(128, 128, batch=2))
    total_loss(detection_losses(output, targets, groups=TINY.groups)).backward()
    # the softmax of attention cancels a key's bias
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or (not parameter.grad.any() and not name.endswith("key.bias"))
    ]
    assert idle == ["encoder.mask_token"]
