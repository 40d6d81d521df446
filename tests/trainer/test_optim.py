"""One step of optimizer, schedule and weight average against numbers worked out by hand."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from rfdetr_edge.variants import VARIANTS
from trainer.config import TrainConfig, model_config
from trainer.ema import WeightAverage
from trainer.model.rfdetr import RFDETR
from trainer.module import DetectionModule
from trainer.optim import build_optimizer, build_schedule, rate_and_decay, rate_factor


def _config(**settings: object) -> TrainConfig:
    return TrainConfig(dataset_dir=".", **settings)


# n = last tap + 1 = 13: a block's factor is 0.8^(14 - (index + 1)), the embeddings' 0.8^14
@pytest.mark.parametrize(
    ("name", "rate", "decay"),
    [
        ("encoder.patches.weight", 1.5e-4 * 0.8**14 * 0.49, 0.0),
        ("encoder.positions", 1.5e-4 * 0.8**14 * 0.49, 0.0),
        ("encoder.class_token", 1.5e-4 * 0.8**14 * 0.49, 0.0),
        ("encoder.blocks.0.fc1.weight", 1.5e-4 * 0.8**13 * 0.49, 1e-4),
        ("encoder.blocks.11.fc1.weight", 1.5e-4 * 0.64 * 0.49, 1e-4),
        ("encoder.blocks.11.fc1.bias", 1.5e-4 * 0.64 * 0.49, 0.0),
        ("encoder.blocks.11.norm1.weight", 1.5e-4 * 0.64 * 0.49, 0.0),
        ("encoder.blocks.11.scale1", 1.5e-4 * 0.64 * 0.49, 1e-4),
        ("encoder.norm.weight", 1.5e-4 * 0.49, 0.0),
        ("decoder.layers.0.norm1.bias", 1e-4 * 0.7, 1e-4),
        ("decoder.position_head.layers.0.weight", 1e-4 * 0.7, 1e-4),
        ("projector.levels.0.norm.bias", 1e-4, 1e-4),
        ("class_head.bias", 1e-4, 1e-4),
        ("query_features.weight", 1e-4, 1e-4),
        ("proposals.3.norm.weight", 1e-4, 1e-4),
    ],
)
def test_rates_and_decays_of_nano(name, rate, decay):
    assert name in dict(RFDETR(VARIANTS["nano"], 3).named_parameters())
    found = rate_and_decay(name, VARIANTS["nano"].taps[-1], _config())
    assert found == (pytest.approx(rate, rel=1e-12), decay)


def test_base_counts_its_blocks_from_its_own_last_tap():
    last_tap = VARIANTS["base"].taps[-1]
    rate, _ = rate_and_decay("encoder.blocks.10.fc1.weight", last_tap, _config())
    assert rate == pytest.approx(1.5e-4 * 0.8 ** (13 - 11) * 0.49)


def test_every_trainable_parameter_is_in_one_group():
    network = RFDETR(VARIANTS["tiny"], 3)
    network.encoder.mask_token.requires_grad_(False)
    groups = build_optimizer(network, _config()).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    wanted = {id(p) for p in network.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == wanted


def test_the_step_schedule_warms_up_and_drops():
    config = _config(warmup_epochs=0.5, lr_scheduler_kwargs={"lr_drop": 3}, epochs=5)
    factors = [rate_factor(step, 10, config) for step in range(50)]
    assert factors[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert set(factors[5:30]) == {1.0}
    assert set(factors[30:]) == {0.1}


def test_the_step_schedule_drops_after_a_hundred_epochs_unless_told():
    config = _config(epochs=120)
    assert [rate_factor(step, 2, config) for step in (199, 200)] == [1.0, 0.1]


def test_the_cosine_schedule_ends_at_its_least_factor():
    config = _config(
        lr_scheduler="cosine", lr_scheduler_kwargs={"min_factor": 0.1}, warmup_epochs=1, epochs=5
    )
    factors = [rate_factor(step, 10, config) for step in range(51)]
    assert factors[10] == 1.0
    assert factors[20] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert factors[30] == pytest.approx(0.55)
    assert factors[50] == pytest.approx(0.1)


def test_the_schedule_scales_every_group():
    network = RFDETR(VARIANTS["tiny"], 3)
    config = _config(warmup_epochs=1, epochs=2)
    optimizer = build_optimizer(network, config)
    full = [group["initial_lr"] if "initial_lr" in group else group["lr"]
            for group in optimizer.param_groups]  # fmt: skip
    schedule = build_schedule(optimizer, config, total_steps=8)
    optimizer.step()
    schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([rate / 4 for rate in full])


def test_one_step_of_adamw_equals_a_hand_computation():
    network = RFDETR(VARIANTS["tiny"], 3)
    config = _config(weight_decay=0.1)
    optimizer = build_optimizer(network, config)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    for name, parameter in network.named_parameters():
        rate, decay = rate_and_decay(name, network.variant.taps[-1], config)
        # the first step: both bias-corrected moments are those of the gradient itself
        step = parameter.grad / (parameter.grad.abs() + 1e-8)
        wanted = before[name] * (1 - rate * decay) - rate * step
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-5, atol=1e-7)


class _Ramp(DetectionModule):
    """Every step adds 1 to one bias, so the average can be worked out on paper."""

    def __init__(self) -> None:
        super().__init__(RFDETR(VARIANTS["tiny"], 3), model_config("tiny"), _config(), None)
        nn.init.zeros_(self.network.class_head.bias)

    def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
        return -self.network.class_head.bias.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.network.class_head.bias], lr=1.0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*log.* interval")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated")
@pytest.mark.parametrize("tau", [100.0, 0.0])
def test_the_average_equals_a_hand_computation(tau):
    average = WeightAverage(0.993, tau)
    module = _Ramp()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
        callbacks=[average],
    )
    trainer.fit(module, DataLoader(torch.zeros(10, 1)))
    expected = 0.0
    for update in range(1, 6):
        decay = 0.993 * (1 - math.exp(-update / tau)) if tau else 0.993
        expected = decay * expected + (1 - decay) * update
    # after the fit the module holds the average, and the callback the plain weights
    assert module.network.class_head.bias.tolist() == pytest.approx([expected] * 3, rel=1e-5)
    plain = average.state_dict()["average"]
    assert plain["class_head.bias"].tolist() == [5.0, 5.0, 5.0]
