"""The Lightning module: losses in training, detections of the deployed path in validation."""

from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.evaluation import encoded
from rfdetr_edge.keypoint_schema import KeypointSchema
from rfdetr_edge.postprocess import postprocess
from trainer.checkpoint import describe, save_checkpoint
from trainer.config import ModelConfig, TrainConfig
from trainer.data.module import Batch
from trainer.losses import detection_losses, mean_over_ranks, total_loss
from trainer.model.output import ModelOutput, raw_outputs
from trainer.model.rfdetr import RFDETR
from trainer.optim import build_optimizer, build_schedule


class Evaluated(NamedTuple):
    """One validation batch: what was found by image id, the sum of its losses, its targets' count.

    found: as `evaluation.encoded` has it, since masks of a whole split would not fit in memory.
    Losses are summed, so that the mean over all targets does not depend on how images are batched.
    """

    found: dict[int, Detections]
    loss: float
    targets: int


class DetectionModule(pl.LightningModule):
    """Trains one RFDETR network."""

    def __init__(
        self,
        network: RFDETR,
        model: ModelConfig,
        config: TrainConfig,
        classes: ClassTable,
        schema: KeypointSchema | None = None,
    ) -> None:
        super().__init__()
        self.network, self._classes, self._schema = network, classes, schema
        self._model, self._config = model, config
        self._boxes = 0.0  # of the optimizer step so far, where its micro-batches count by theirs
        self.save_hyperparameters(config.model_dump(mode="json"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Has Lightning's files say what they are, as ours do."""
        checkpoint |= describe(
            classes=self._classes, model=self._model, train=self._config, schema=self._schema
        )

    def save(self, path: Path, epoch: int) -> None:
        """Writes the present weights, those that `epoch` ended with, as a `.pth`."""
        save_checkpoint(
            path,
            self.network,
            classes=self._classes,
            schema=self._schema,
            model=self._model,
            train=self._config,
            epoch=epoch,
            source="ema" if self._config.use_ema else "regular",
        )

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Has the draws of drop path follow from the batch, so that a resumed run repeats them.

        Not once an epoch: Lightning starts a process's first epoch with other draws in between.
        """
        draw = (self._config.seed, self.current_epoch, batch_index, self.global_rank)
        torch.manual_seed(hash(draw))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One micro-batch; all query groups."""
        output, groups = self.network(batch.images), self.network.variant.groups
        boxes = mean_over_ranks(_count(batch), self.device)
        # Losses stay in float32 under autocast: matching and IoU need the digits.
        with torch.autocast(self.device.type, enabled=False):
            losses, loss = self._losses(output, batch, groups, boxes)
        options = {"on_step": False, "on_epoch": True, "sync_dist": True}
        # of the last layer; the others, which have a suffix, follow it
        shown = {*self._config.coefficients, "class_error", "cardinality_error"}
        parts = {f"train/{name}": value for name, value in losses.items() if name in shown}
        self.log_dict({"train/loss": loss, **parts}, batch_size=len(batch.targets), **options)
        self.log("loss", loss, prog_bar=True, logger=False)  # of this batch, for the progress bar
        if self.network.variant.task != "keypoint":
            return loss
        self._boxes += boxes * groups
        return loss * max(boxes * groups, 1.0)  # a sum again, see below

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Has keypoint variants learn from micro-batches what one batch of all would teach.

        The others take the mean over micro-batches, as upstream does (training.md section 4).
        """
        if self.network.variant.task == "keypoint":
            share = self._config.grad_accum_steps / max(self._boxes, 1.0)
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad *= share
            self._boxes = 0.0

    def validation_step(self, batch: Batch, batch_index: int) -> Evaluated:
        """In float32, through the runtime's own postprocessing."""
        with torch.autocast(self.device.type, enabled=False):
            output = self.network(batch.images)
            # of this rank alone: ranks may have different numbers of batches
            _, loss = self._losses(output, batch, groups=1, num_boxes=1)
        found = postprocess(
            raw_outputs(output.final),
            source_sizes=[target.source_size for target in batch.targets],
            classes=self._classes,
            num_select=self.network.variant.num_select,
            threshold=0.0,
            schema=self._schema,
        )
        image_ids = [target.image_id for target in batch.targets]
        return Evaluated(
            dict(zip(image_ids, map(encoded, found), strict=True)),
            float(loss),
            int(_count(batch)),
        )

    test_step = validation_step

    def _losses(
        self, output: ModelOutput, batch: Batch, groups: int, num_boxes: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Every loss by name, and their weighted sum."""
        losses = detection_losses(
            output,
            batch.targets,
            groups=groups,
            num_boxes=num_boxes,
            keypoint_counts=self.network.keypoint_counts,
            coefficients=self._config.coefficients,
        )
        return losses, total_loss(losses, self._config.coefficients)

    def configure_optimizers(self) -> Any:
        """AdamW, and a schedule stepped after every optimizer step."""
        optimizer = build_optimizer(self.network, self._config)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, self._config, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def _count(batch: Batch) -> float:
    return float(sum(len(target.labels) for target in batch.targets))
