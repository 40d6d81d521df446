"""Validation goes the deployed path; the kept weights are the best ones; drop path drops."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from rfdetr_edge.datasets import Dataset, read_dataset
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import InputError
from rfdetr_edge.images import read_image
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.postprocess import postprocess
from rfdetr_edge.preprocess import preprocess
from rfdetr_edge.variants import VARIANTS
from trainer.callbacks import BestWeights
from trainer.checkpoint import load_checkpoint
from trainer.config import ModelConfig, TrainConfig, model_config, train_config
from trainer.data.module import Batch, DetectionData
from trainer.model.encoder import Block
from trainer.model.output import Prediction, raw_outputs
from trainer.model.rfdetr import RFDETR
from trainer.module import DetectionModule, Evaluated
from trainer.targets import Target

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 under torch 2.13
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
]


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(dataset_dir=dataset, output_dir=tmp_path, num_workers=0, use_ema=False)


@pytest.fixture
def model() -> ModelConfig:
    return model_config("tiny", resolution=96)


@pytest.fixture
def photos_read(dataset: Path) -> Dataset:
    return read_dataset(dataset, "roboflow", report=None)


@pytest.fixture
def network() -> RFDETR:
    torch.manual_seed(0)
    return RFDETR(VARIANTS["tiny"], slots=4)


def test_validation_finds_what_the_deployed_path_finds(config, model, photos_read, network):
    module = DetectionModule(network.eval(), model, config, photos_read.classes)
    with torch.no_grad():
        (batch,) = DetectionData(config, model, photos_read).val_dataloader()
        evaluated = module.validation_step(batch, 0)
    assert evaluated.found.keys() == {1, 2, 3}
    assert evaluated.loss > 0
    images = [read_image(each.path, upright=False) for each in photos_read.valid.images]
    tensors = [preprocess(image, InputSpec((96, 96), antialias=True)) for image in images]
    with torch.no_grad():
        # one batch, as above: scores that nearly tie may change places with the batch size
        final = network(torch.from_numpy(np.stack(tensors))).final
    wanted = postprocess(
        raw_outputs(final),
        source_sizes=[image.shape[:2] for image in images],
        classes=photos_read.classes,
        num_select=network.variant.num_select,
        threshold=0.0,
    )
    for labelled, expected in zip(photos_read.valid.images, wanted, strict=True):
        detections = evaluated.found[labelled.image_id]
        assert len(detections.confidence) == network.variant.num_select
        np.testing.assert_array_equal(detections.class_id, expected.class_id)
        np.testing.assert_allclose(detections.confidence, expected.confidence, atol=1e-5)
        np.testing.assert_allclose(detections.xyxy, expected.xyxy, atol=0.05)


class _Shifted(DetectionModule):
    """Finds every object, each box a number of pixels off; the weights bear the same number."""

    shift = 0.0
    loss = 1.0

    def validation_step(self, batch: Batch, batch_index: int) -> Evaluated:
        nn.init.constant_(self.network.class_head.bias, self.shift)
        found = {target.image_id: self._detections(target) for target in batch.targets}
        return Evaluated(found, self.loss, len(found))

    def _detections(self, target: Target) -> Detections:
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


def _validate(
    module: DetectionModule, best: BestWeights, data: DetectionData, shift: float
) -> dict:
    """The metrics of an epoch that finds everything this far off."""
    module.shift = shift
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[best],
    )
    (logged,) = trainer.validate(module, data.val_dataloader(), verbose=False)
    return {**logged, "stopped": trainer.should_stop}


def test_only_better_weights_are_kept(config, model, photos_read, network):
    data = DetectionData(config, model, photos_read)
    module = _Shifted(network, model, config, photos_read.classes)
    best = BestWeights(photos_read, model, config)
    precisions = []
    for shift, kept in ((8.0, 8.0), (20.0, 8.0), (8.0, 8.0), (2.0, 2.0), (5.0, 2.0)):
        logged = _validate(module, best, data, shift)
        precisions.append(logged["val/mAP_50_95"])
        found = load_checkpoint(best.path)
        assert found.model.class_head.bias.tolist() == [kept] * 4
        assert found.classes == photos_read.classes
        assert (found.resolution, found.antialias) == (96, True)
    assert precisions[3] > precisions[4] > precisions[0] == precisions[2] > precisions[1]
    assert logged.keys() >= {"val/mAP_50", "val/mAP_75", "val/AP/RBC", "val/AP/Platelets"}


class _Misplaced(DetectionModule):
    """Finds every object's box, and each of its keypoints a share of the image to the right."""

    shift = 0.0

    def validation_step(self, batch: Batch, batch_index: int) -> Evaluated:
        nn.init.constant_(self.network.class_head.bias, self.shift)
        slots, counts = self.network.slots, self.network.keypoint_counts
        found = {}
        for target in batch.targets:
            points = torch.zeros(len(target.labels), len(counts) * max(counts), 8)
            logits = torch.full((len(target.labels), slots), -20.0)
            for row, slot in enumerate(target.labels.tolist()):
                own = slice(slot * max(counts), (slot + 1) * max(counts))
                points[row, own, :2] = target.keypoints[row, :, :2]
                logits[row, slot] = 5.0
            points[..., 0] += self.shift
            outputs = raw_outputs(Prediction(target.boxes[None], logits[None], None, points[None]))
            (found[target.image_id],) = postprocess(
                outputs,
                source_sizes=[target.source_size],
                classes=self._classes,
                num_select=len(target.labels),
                threshold=0.0,
                schema=self._schema,
            )
        return Evaluated(found, 1.0, len(found))


@pytest.mark.parametrize(
    ("alpha", "metric", "best"), [(0.0, "map", 0.0), (0.9, "map", 0.005), (0.0, "mar", 0.0)]
)
def test_the_best_keypoint_weights_are_those_of_the_best_smoothed_oks_metric(
    parts, tmp_path, alpha, metric, best
):
    settings = {"dataset_dir": parts, "output_dir": tmp_path, "num_workers": 0}
    settings |= {"skip_best_epochs": 0, "smooth_alpha": alpha, "best_model_metric": metric}
    config = train_config("keypoint", **settings)
    model, data = (
        model_config("keypoint-tiny", resolution=96),
        read_dataset(parts, "roboflow", report=None, task="keypoint"),
    )
    network = RFDETR(model.row, 5, data.schema.counts)
    module = _Misplaced(network, model, config, data.classes, data.schema)
    kept, loader = BestWeights(data, model, config), DetectionData(config, model, data)
    # a good epoch, a bad one, and a perfect one that does not make up for it when smoothed
    logged = [_validate(module, kept, loader, shift) for shift in (0.005, 0.5, 0.0)]
    assert {round(one["val/mAP_50_95"], 3) for one in logged} == {1.0}
    assert logged[2]["val/keypoint_map_50_95"] == pytest.approx(1)
    assert 1 > logged[0]["val/keypoint_map_50_95"] > logged[1]["val/keypoint_map_50_95"]
    assert load_checkpoint(kept.path).model.class_head.bias.tolist() == pytest.approx([best] * 5)


def test_a_resumed_run_knows_the_best_precision(config, model, photos_read, network):
    data = DetectionData(config, model, photos_read)
    module = _Shifted(network, model, config, photos_read.classes)
    first, second = (BestWeights(photos_read, model, config) for _ in range(2))
    _validate(module, first, data, 2.0)
    second.load_state_dict(first.state_dict())
    _validate(module, second, data, 9.0)
    assert load_checkpoint(second.path).model.class_head.bias.tolist() == [2.0] * 4


def test_small_steps_that_add_up_do_not_stop_a_run(config, model, photos_read, network):
    config = config.model_copy(
        update={"early_stopping": True, "early_stopping_patience": 2,
                "early_stopping_min_delta": 0.3}
    )  # fmt: skip
    data = DetectionData(config, model, photos_read)
    module = _Shifted(network, model, config, photos_read.classes)
    best = BestWeights(photos_read, model, config)
    epochs = [_validate(module, best, data, shift) for shift in (8.0, 5.0, 2.0, 1.0, 0.0)]
    precisions = [logged["val/mAP_50_95"] for logged in epochs]
    assert precisions[1] - precisions[0] < 0.3 <= precisions[2] - precisions[0]
    assert precisions[4] - precisions[2] < 0.3
    assert [logged["stopped"] for logged in epochs] == [False, False, False, False, True]


def test_the_first_epochs_are_skipped_when_asked_for(config, model, photos_read, network):
    config = config.model_copy(update={"skip_best_epochs": 1})
    data = DetectionData(config, model, photos_read)
    best = BestWeights(photos_read, model, config)
    _validate(_Shifted(network, model, config, photos_read.classes), best, data, 0.0)
    assert not best.path.exists()


def test_weights_that_are_no_numbers_end_the_run(config, model, photos_read, network):
    module = _Shifted(network, model, config, photos_read.classes)
    module.loss = float("nan")
    best = BestWeights(photos_read, model, config)
    with pytest.raises(InputError, match="NaN or infinite in epoch 0"):
        _validate(module, best, DetectionData(config, model, photos_read), 0.0)
    assert not best.path.exists()


def test_drop_path_grows_over_the_blocks_in_training_alone(network):
    network.encoder.drop_path = 0.5
    drops: list[float] = []
    for block in network.encoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: drops.append(inputs[2]))
    images = torch.zeros(1, 3, 96, 96)
    network.train()(images)
    assert drops == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    drops.clear()
    network.eval()(images)
    assert drops == [0.0] * 6


def test_a_dropped_row_skips_the_branch_and_a_kept_one_makes_up_for_it():
    torch.manual_seed(0)
    block = Block(8, 2)
    nn.init.zeros_(block.scale1)  # the second branch alone
    x = torch.randn(400, 3, 8)
    with torch.no_grad():
        branch = block(x, 1, 0.0) - x
        found = block(x, 1, 0.25) - x
    kept = found.abs().amax(dim=(1, 2)) > 0
    torch.testing.assert_close(found[kept], branch[kept] / 0.75, rtol=1e-4, atol=1e-5)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.07)  # three deviations


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("variant", ["keypoint-tiny", "tiny"])
def test_keypoints_learn_from_micro_batches_what_one_batch_teaches(parts, tmp_path, variant):
    """For boxes it is the mean over micro-batches, whatever they hold."""
    row = VARIANTS[variant]
    data = read_dataset(parts, "roboflow", report=None, task=row.task)
    model = model_config(variant, resolution=96)
    settings = {"dataset_dir": parts, "output_dir": tmp_path, "num_workers": 0, "seed": 1}
    config = train_config(row.task, **settings, multi_scale="off", aug_config={})
    (drawn, *_) = DetectionData(config, model, data).train_dataloader()
    # of one target, and of several
    every = Batch(drawn.images[:2].double(), [_first(drawn.targets[0]), drawn.targets[1]])
    halves = [Batch(every.images[i, None], every.targets[i : i + 1]) for i in range(2)]
    gradients = []
    for batches in ([every], halves):
        steps = len(batches)
        torch.manual_seed(0)
        network = RFDETR(row, len(data.classes), data.schema.counts if data.schema else ())
        network = network.double().train()  # no ties in the ranking that rounding decides
        run = config.model_copy(update={"grad_accum_steps": steps})
        module = DetectionModule(network, model, run, data.classes, data.schema)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            accumulate_grad_batches=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
        gradients.append(network.box_head.layers[-1].bias.grad.clone())
    together, apart = gradients
    assert len(every.targets[1].labels) > 1
    assert together.all()
    assert torch.allclose(apart, together, rtol=1e-3, atol=1e-6) == (variant == "keypoint-tiny")


def _first(target: Target) -> Target:
    points = None if target.keypoints is None else target.keypoints[:1]
    return target._replace(boxes=target.boxes[:1], labels=target.labels[:1], keypoints=points)
