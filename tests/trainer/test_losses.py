"""Matches and losses equal upstream's, number by number (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from trainer.losses import (
    detection_losses,
    focal,
    ia_bce,
    position_supervised,
    varifocal,
)
from trainer.matcher import match
from trainer.model.output import ModelOutput, Prediction
from trainer.targets import Target

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "criterion.npz")
CASES = [case for case in json.loads(str(GOLDEN["cases"])) if case["name"].startswith("det_")]
CLASS_LOSSES = {
    "det_focal": focal,
    "det_varifocal": varifocal,
    "det_position_supervised": position_supervised,
}


def _prediction(prefix: str) -> Prediction:
    return Prediction(
        *(torch.from_numpy(GOLDEN[f"{prefix}/pred_{part}"]) for part in ("boxes", "logits"))
    )


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
        )
        for i in range(case["batch"])
    ]
    return output, targets, case["group_detr"] if case["train"] else 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_losses_equal_upstream(case):
    output, targets, groups = _load(case)
    losses = detection_losses(
        output,
        targets,
        groups=groups,
        class_loss=CLASS_LOSSES.get(case["name"], ia_bce),
        sum_groups=case["sum_group_losses"],
    )
    assert losses.keys() == case["losses"].keys()
    for name, value in case["losses"].items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4, abs=1e-7), name
    total = sum(weight * losses[name].item() for name, weight in case["weight_dict"].items())
    assert total == pytest.approx(case["total"], rel=1e-4)


def _part(output: ModelOutput, image: int) -> ModelOutput:
    cut = [
        Prediction(boxes[image, None], logits[image, None])
        for boxes, logits in [*output.layers, output.proposals]
    ]
    return ModelOutput(cut[:-1], cut[-1])


def _write_losses(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    output, targets, groups = _load(CASES[1])
    losses = detection_losses(_part(output, rank), targets[rank : rank + 1], groups=groups)
    torch.save(losses, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_the_mean_of_two_ranks_is_the_loss_of_both_batches(tmp_path):
    """The ranks hold 4 and 2 targets, so that dividing by their own counts would differ."""
    torch.multiprocessing.spawn(_write_losses, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    output, targets, groups = _load(CASES[1])
    losses = detection_losses(output, targets, groups=groups)
    for name, value in ((name, losses[name]) for name in losses if name.startswith("loss")):
        assert (first[name] + second[name]).item() / 2 == pytest.approx(value.item(), rel=1e-5)


def test_a_given_number_of_boxes_divides():
    output, targets, groups = _load(CASES[0])
    count = sum(len(target.labels) for target in targets)
    losses = detection_losses(output, targets, groups=groups)
    halved = detection_losses(output, targets, groups=groups, num_boxes=2 * count)
    assert halved["loss_bbox"].item() == pytest.approx(losses["loss_bbox"].item() / 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_matches_equal_upstream(case):
    output, targets, groups = _load(case)
    named = {f"aux{i}": layer for i, layer in enumerate(output.layers[:-1])}
    for name, prediction in {"final": output.final, "enc": output.proposals, **named}.items():
        for image, found in enumerate(match(prediction, targets, groups)):
            expected = GOLDEN[f"{case['name']}/match/{name}/{image}"]
            np.testing.assert_array_equal(torch.stack(list(found)).numpy(), expected)


def test_a_prediction_that_is_not_finite_is_matched_last():
    boxes = torch.tensor([[[float("nan")] * 4, [0.5, 0.5, 0.2, 0.2]]])
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([0]), 0, (1, 1))
    (found,) = match(Prediction(boxes, torch.zeros(1, 2, 3)), [target], groups=1)
    assert found.query.tolist() == [1]
