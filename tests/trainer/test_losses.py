"""Matches and losses equal upstream's, number by number (tests/golden/README.md)."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fill import uniform
from torch import Tensor

from rfdetr_edge.variants import Task
from trainer.config import train_config
from trainer.keypoint_losses import keypoint_losses
from trainer.losses import (
    detection_losses,
    focal,
    ia_bce,
    position_supervised,
    total_loss,
    varifocal,
)
from trainer.matcher import match
from trainer.model.output import MaskFactors, ModelOutput, Prediction
from trainer.targets import Target

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "criterion.npz")
CASES = json.loads(str(GOLDEN["cases"]))
BY_NAME = {case["name"]: case for case in CASES}
TASKS: dict[str, Task] = {"det": "detection", "seg": "segmentation", "kp": "keypoint"}
CLASS_LOSSES = {
    "det_focal": focal,
    "det_varifocal": varifocal,
    "det_position_supervised": position_supervised,
}


def _tensor(key: str) -> Tensor | None:
    return torch.from_numpy(GOLDEN[key]) if key in GOLDEN else None


def _prediction(prefix: str) -> Prediction:
    parts = [_tensor(f"{prefix}/pred_{part}") for part in ("boxes", "logits", "masks", "keypoints")]
    factors = f"{prefix}/pred_masks"
    if f"{factors}/bias" in GOLDEN:
        names = ("spatial_features", "query_features", "bias")
        spatial, query, bias = (torch.from_numpy(GOLDEN[f"{factors}/{name}"]) for name in names)
        parts[2] = MaskFactors(spatial, query, bias.expand(*query.shape[:2], 1))
    return Prediction(*parts)


def _load(case: dict) -> tuple[ModelOutput, list[Target], int]:
    root = f"{case['name']}/outputs"
    aux = sum(layer.startswith("aux") for layer in case["layers"])
    output = ModelOutput(
        [_prediction(f"{root}/aux_outputs/{i}") for i in range(aux)] + [_prediction(root)],
        _prediction(f"{root}/enc_outputs"),
    )
    targets = [
        Target(
            torch.from_numpy(GOLDEN[f"{case['name']}/targets/{i}/boxes"]).reshape(-1, 4),
            torch.from_numpy(GOLDEN[f"{case['name']}/targets/{i}/labels"]).long(),
            image_id=i,
            source_size=(1, 1),
            masks=_tensor(f"{case['name']}/targets/{i}/masks"),
            keypoints=_tensor(f"{case['name']}/targets/{i}/keypoints"),
        )
        for i in range(case["batch"])
    ]
    return output, targets, case["group_detr"] if case["train"] else 1


def _draw(case: dict) -> Callable[..., Tensor]:
    """The case's random numbers in their order; other shapes than upstream's are an error."""
    left = iter(case["rand_draws"])

    def draw(*shape: int, device: torch.device) -> Tensor:
        key, expected = next(left)
        assert list(shape) == expected
        return torch.from_numpy(uniform(key, shape).astype(np.float32)).to(device)

    return draw


def _coefficients(case: dict) -> dict[str, float]:
    return train_config(TASKS[case["name"].split("_")[0]], dataset_dir="data").coefficients


def _losses(
    case: dict, output: ModelOutput, targets: list[Target], groups: int
) -> dict[str, Tensor]:
    return detection_losses(
        output,
        targets,
        groups=groups,
        class_loss=CLASS_LOSSES.get(case["name"], ia_bce),
        sum_groups=case["sum_group_losses"],
        keypoint_counts=case["num_keypoints_per_class"],
        coefficients=_coefficients(case),
        draw=_draw(case),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_losses_equal_upstream(case):
    losses = _losses(case, *_load(case))
    assert losses.keys() == case["losses"].keys()
    for name, value in case["losses"].items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4, abs=1e-7), name
    weighted = {name: losses[name] for name in case["weight_dict"]}
    total = total_loss(weighted, _coefficients(case))
    assert total.item() == pytest.approx(case["total"], rel=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_coefficients_are_upstream_s(case):
    weights = case["weight_dict"]
    of_last_layer = {name: weights[name] for name in weights if f"{name}_enc" in weights}
    assert _coefficients(case).items() >= of_last_layer.items()


def _part(output: ModelOutput, image: int) -> ModelOutput:
    cut = [
        Prediction(layer.boxes[image, None], layer.logits[image, None])
        for layer in [*output.layers, output.proposals]
    ]
    return ModelOutput(cut[:-1], cut[-1])


def _write_losses(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    output, targets, groups = _load(CASES[1])
    losses = _losses(CASES[1], _part(output, rank), targets[rank : rank + 1], groups)
    torch.save(losses, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_the_mean_of_two_ranks_is_the_loss_of_both_batches(tmp_path):
    """The ranks hold 4 and 2 targets, so that dividing by their own counts would differ."""
    torch.multiprocessing.spawn(_write_losses, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    losses = _losses(CASES[1], *_load(CASES[1]))
    for name, value in ((name, losses[name]) for name in losses if name.startswith("loss")):
        assert (first[name] + second[name]).item() / 2 == pytest.approx(value.item(), rel=1e-5)


def test_a_given_number_of_boxes_divides():
    output, targets, groups = _load(CASES[0])
    count = sum(len(target.labels) for target in targets)
    losses = _losses(CASES[0], output, targets, groups)
    weights = _coefficients(CASES[0])
    halved = detection_losses(
        output, targets, groups=groups, coefficients=weights, num_boxes=2 * count
    )
    assert halved["loss_bbox"].item() == pytest.approx(losses["loss_bbox"].item() / 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_matches_equal_upstream(case):
    output, targets, groups = _load(case)
    named = {f"aux{i}": layer for i, layer in enumerate(output.layers[:-1])}
    named |= {"final": output.final, "enc": output.proposals}
    draw = _draw(case)
    for name in case["layers"]:
        counts = case["num_keypoints_per_class"]
        matches = match(named[name], targets, groups, _coefficients(case), counts, draw)
        for image, found in enumerate(matches):
            expected = GOLDEN[f"{case['name']}/match/{name}/{image}"]
            np.testing.assert_array_equal(torch.stack(list(found)).numpy(), expected)


def test_a_prediction_that_is_not_finite_is_matched_last():
    boxes = torch.tensor([[[float("nan")] * 4, [0.5, 0.5, 0.2, 0.2]]])
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([0]), 0, (1, 1))
    (found,) = match(Prediction(boxes, torch.zeros(1, 2, 3)), [target], 1, {})
    assert found.query.tolist() == [1]


def _learning(output: ModelOutput) -> list[Tensor]:
    """The masks or keypoints of all layers, made to collect gradients."""
    parts = []
    for layer in [*output.layers, output.proposals]:
        parts += [layer.keypoints] if layer.masks is None else list(layer.masks)
    return [part.requires_grad_() for part in parts]


@pytest.mark.parametrize("name", ["seg_sparse_train_groups2", "kp_multi_class_padded"])
def test_masks_and_keypoints_learn(name):
    output, targets, groups = _load(BY_NAME[name])
    parts = _learning(output)
    total_loss(
        _losses(BY_NAME[name], output, targets, groups), _coefficients(BY_NAME[name])
    ).backward()
    assert all(part.grad.isfinite().all() and part.grad.any() for part in parts)


def test_without_targets_the_gradient_is_zero_and_not_missing():
    """Distributed training waits for every parameter's gradient."""
    empty = [
        Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), i, (1, 1), keypoints=points)
        for i, points in enumerate([torch.zeros(0, 17, 3)] * 2)
    ]
    for name in ("seg_sparse_empty", "kp_eval"):
        case = BY_NAME[name]
        output, targets, groups = _load(case)
        parts = _learning(output)
        losses = _losses(case, output, empty if name == "kp_eval" else targets, groups)
        total_loss(losses, _coefficients(case)).backward()
        assert all(part.grad is not None and not part.grad.any() for part in parts)


def test_factors_lose_what_their_dense_masks_lose():
    case = BY_NAME["seg_sparse_train_groups2"]
    output, targets, groups = _load(case)
    dense = [layer._replace(masks=layer.masks.dense()) for layer in output.layers]
    proposals = output.proposals._replace(masks=output.proposals.masks.dense())
    expected = _losses(case, ModelOutput(dense, proposals), targets, groups)
    for name, value in _losses(case, output, targets, groups).items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5), name


def test_half_precision_outputs_give_float32_losses():
    for name in ("seg_sparse_train_groups2", "kp_eval"):
        output, targets, groups = _load(BY_NAME[name])
        halves = [
            Prediction(*(part.bfloat16() if isinstance(part, Tensor) else part for part in layer))
            for layer in [*output.layers, output.proposals]
        ]
        losses = _losses(BY_NAME[name], ModelOutput(halves[:-1], halves[-1]), targets, groups)
        assert {value.dtype for value in losses.values()} == {torch.float32}


def test_keypoints_that_are_not_finite_are_left_out():
    torch.manual_seed(0)
    keypoints, wanted = torch.rand(2, 5, 8), torch.rand(2, 5, 3)
    wanted[..., 2] = 2
    args = (torch.zeros(2, dtype=torch.long), torch.rand(2, 4), [5])
    hidden = wanted.clone()
    hidden[0, 3, 2] = 0
    expected = keypoint_losses(keypoints, hidden, *args)
    keypoints[0, 3, 0], keypoints[0, 3, 4] = float("nan"), float("inf")
    losses = keypoint_losses(keypoints.requires_grad_(), wanted, *args)
    for name in ("loss_keypoints_l1", "loss_keypoints_nll"):
        assert losses[name].item() == pytest.approx(expected[name].item())
    torch.stack(list(losses.values())).sum().backward()
    assert keypoints.grad.isfinite().all()
    assert not keypoints.grad[0, 3].any()
    assert keypoints.grad[..., :7].any(-1).sum() == 9


def test_a_batch_with_keypoints_that_are_not_finite_still_teaches():
    case = BY_NAME["kp_eval"]
    output, targets, groups = _load(case)
    output.final.keypoints[:, :, 0] = float("nan")
    parts = _learning(output)
    total = total_loss(_losses(case, output, targets, groups), _coefficients(case))
    total.backward()
    assert total.isfinite()
    assert all(part.grad.isfinite().all() and part.grad.any() for part in parts)


def test_a_class_outside_the_schema_teaches_no_keypoints():
    case = BY_NAME["kp_multi_class_padded"]
    output, targets, groups = _load(case)
    labels = targets[0].labels.clone()
    labels[0] = len(case["num_keypoints_per_class"])
    losses = _losses(case, output, [targets[0]._replace(labels=labels), targets[1]], groups)
    keypoint = {name: value.item() for name, value in losses.items() if "keypoints" in name}
    assert set(keypoint.values()) == {0.0}
    assert losses["loss_bbox"] > 0
