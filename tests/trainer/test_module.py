"""Validation goes the deployed path; the kept weights are the averaged and the best ones."""

import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.images import read_image
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.postprocess import postprocess
from rfdetr_edge.preprocess import preprocess
from trainer.callbacks import BestByAP, weight_average
from trainer.checkpoint import load_checkpoint
from trainer.config import TrainConfig
from trainer.data.coco import read_classes
from trainer.data.module import Batch, DetectionData
from trainer.model.rfdetr import RFDETR
from trainer.module import DetectionModule
from trainer.optim import build_optimizer, build_schedule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 under torch 2.13
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
]


@pytest.fixture
def config(dataset, tmp_path) -> TrainConfig:
    return TrainConfig(
        variant="tiny", dataset=dataset, output=tmp_path, resolution=96, num_workers=0
    )


@pytest.fixture
def model() -> RFDETR:
    torch.manual_seed(0)
    return RFDETR(TrainConfig(variant="tiny", dataset=Path()).table_entry, slots=4)


def _trainer(*callbacks: pl.Callback, **options: object) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def test_validation_finds_what_the_deployed_path_finds(config, model):
    classes = read_classes(config.dataset)
    data = DetectionData(config, classes)
    module = DetectionModule(model.eval(), config, classes)
    with torch.no_grad():
        (batch,) = data.val_dataloader()
        found = module.validation_step(batch, 0)
    assert found.keys() == {1, 2, 3}
    images = [read_image(each.path, upright=False) for each in data.valid_split.images]
    tensors = [preprocess(image, InputSpec((96, 96), antialias=True)) for image in images]
    with torch.no_grad():
        # one batch, as above: scores that nearly tie may change places with the batch size
        boxes, logits = model(torch.from_numpy(np.stack(tensors))).final
    wanted = postprocess(
        boxes.numpy(),
        logits.numpy(),
        source_sizes=[image.shape[:2] for image in images],
        classes=classes,
        num_select=model.variant.num_select,
        threshold=0.0,
    )
    for labelled, expected in zip(data.valid_split.images, wanted, strict=True):
        detections = found[labelled.image_id]
        assert len(detections.confidence) == model.variant.num_select
        np.testing.assert_array_equal(detections.class_id, expected.class_id)
        np.testing.assert_allclose(detections.confidence, expected.confidence, atol=1e-5)
        np.testing.assert_allclose(detections.xyxy, expected.xyxy, atol=0.05)


class _Scale(pl.LightningModule):
    """One weight, one step a batch, without any schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.after_steps: list[float] = []

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        return (self.weight * batch).sum()

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.after_steps.append(self.weight.item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_average_ramps_up_from_the_first_weights():
    module, decay = _Scale(), 0.9
    steps = DataLoader(torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0, 9.0]))
    _trainer(weight_average(decay), max_epochs=1).fit(module, steps)
    weights = 1 - 0.1 * np.cumsum([3.0, -1.0, 4.0, 1.0, -5.0, 9.0])
    expected = weights[0]
    for updates, weight in enumerate(weights[1:], start=1):
        ramped = decay * (1 - math.exp(-updates / 100))
        expected = ramped * expected + (1 - ramped) * weight
    assert module.weight.item() == pytest.approx(expected, abs=1e-6)
    assert module.weight.item() != pytest.approx(weights[-1], abs=1e-3)


class _Shifted(DetectionModule):
    """Finds every object, each box a number of pixels off; the weights bear the same number."""

    shift = 0.0

    def validation_step(self, batch: Batch, batch_index: int) -> dict[int, Detections]:
        nn.init.constant_(self.model.class_head.bias, self.shift)
        return {target.image_id: self._detections(target) for target in batch.targets}

    def _detections(self, target) -> Detections:
        height, width = target.source_size
        centre, size = target.boxes.numpy()[:, :2], target.boxes.numpy()[:, 2:]
        corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        return Detections(
            xyxy=(corners * [width, height, width, height] + self.shift).astype(np.float32),
            confidence=np.full(len(corners), 0.9, np.float32),
            class_id=target.labels.numpy(),
            classes=self._classes,
            source_size=target.source_size,
        )


def test_only_better_weights_are_kept(config, model):
    classes: ClassTable = read_classes(config.dataset)
    data = DetectionData(config, classes)
    module = _Shifted(model, config, classes)
    best = BestByAP(data.valid_split.annotations, config, classes)
    precisions = []
    for shift, kept in ((8.0, 8.0), (20.0, 8.0), (8.0, 8.0), (2.0, 2.0), (5.0, 2.0)):
        module.shift = shift
        (logged,) = _trainer(best).validate(module, data.val_dataloader(), verbose=False)
        precisions.append(logged["val/mAP_50_95"])
        found = load_checkpoint(best.path)
        assert found.model.class_head.bias.tolist() == [kept] * 4
        assert found.classes == classes
        assert (found.resolution, found.antialias) == (96, True)
    assert precisions[3] > precisions[4] > precisions[0] == precisions[2] > precisions[1]
    assert logged.keys() >= {"val/mAP_50", "val/mAP_75", "val/AP/RBC", "val/AP/Platelets"}


def test_a_resumed_run_knows_the_best_precision(config, model):
    classes = read_classes(config.dataset)
    data = DetectionData(config, classes)
    module = _Shifted(model, config, classes)
    first, second = (BestByAP(data.valid_split.annotations, config, classes) for _ in range(2))
    module.shift = 2.0
    _trainer(first).validate(module, data.val_dataloader(), verbose=False)
    second.load_state_dict(first.state_dict())
    module.shift = 9.0
    _trainer(second).validate(module, data.val_dataloader(), verbose=False)
    assert load_checkpoint(second.path).model.class_head.bias.tolist() == [2.0] * 4


def test_the_rate_warms_up_and_falls_to_a_hundredth(config, model):
    settings = config.model_copy(update={"warmup_steps": 4, "lr": 1.0})
    schedule = build_schedule(build_optimizer(model, settings), settings, total_steps=24)
    rates = []
    for _ in range(26):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates[14] == pytest.approx(0.505)  # half of the cosine
    assert rates[24:] == pytest.approx([0.01, 0.01])
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_only_matrices_decay(config, model):
    decayed, free = build_optimizer(model, config).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0)
    vectors = {id(p) for name, p in model.named_parameters() if name.endswith("bias")}
    assert vectors <= {id(parameter) for parameter in free["params"]}
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
