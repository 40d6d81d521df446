"""The Lightning module: losses in training, detections of the deployed path in validation."""

from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.postprocess import postprocess
from trainer.checkpoint import describe
from trainer.config import ModelConfig, TrainConfig
from trainer.data.module import Batch
from trainer.losses import detection_losses, total_loss
from trainer.model.rfdetr import RFDETR
from trainer.optim import build_optimizer, build_schedule

# Of the last layer; the others follow it.
_LOGGED = ("loss_ce", "loss_bbox", "loss_giou", "class_error", "cardinality_error")


class Evaluated(NamedTuple):
    """One validation batch: detections by image id, the sum of its losses, and its targets' count.

    Summed, so that the mean over all targets does not depend on how images are batched.
    """

    found: dict[int, Detections]
    loss: float
    targets: int


class DetectionModule(pl.LightningModule):
    """Trains one RFDETR network."""

    def __init__(
        self, network: RFDETR, model: ModelConfig, config: TrainConfig, classes: ClassTable
    ) -> None:
        super().__init__()
        self.network = network
        self._model = model
        self._config = config
        self._classes = classes
        self.save_hyperparameters(config.model_dump(mode="json"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Has Lightning's files say what they are, as ours do."""
        checkpoint.update(describe(classes=self._classes, model=self._model, train=self._config))

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Has the draws of drop path follow from the batch, so that a resumed run repeats them.

        Not once an epoch: Lightning starts a process's first epoch with other draws in between.
        """
        draw = (self._config.seed, self.current_epoch, batch_index, self.global_rank)
        torch.manual_seed(hash(draw))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One micro-batch; all query groups."""
        output = self.network(batch.images)
        # Losses stay in float32 under autocast: matching and IoU need the digits.
        with torch.autocast(self.device.type, enabled=False):
            groups = self.network.variant.groups
            losses = detection_losses(output, batch.targets, groups=groups)
            loss = total_loss(losses)
        options = {"on_step": False, "on_epoch": True, "sync_dist": True}
        parts = {f"train/{name}": losses[name] for name in _LOGGED}
        self.log_dict({"train/loss": loss, **parts}, batch_size=len(batch.targets), **options)
        self.log("loss", loss, prog_bar=True, logger=False)  # of this batch, for the progress bar
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> Evaluated:
        """In float32, through the runtime's own postprocessing."""
        with torch.autocast(self.device.type, enabled=False):
            output = self.network(batch.images)
            # of this rank alone: ranks may have different numbers of batches
            losses = detection_losses(output, batch.targets, groups=1, num_boxes=1)
        boxes, logits = output.final
        found = postprocess(
            boxes.cpu().numpy(),
            logits.cpu().numpy(),
            source_sizes=[target.source_size for target in batch.targets],
            classes=self._classes,
            num_select=self.network.variant.num_select,
            threshold=0.0,
        )
        image_ids = [target.image_id for target in batch.targets]
        count = sum(len(target.labels) for target in batch.targets)
        by_image = dict(zip(image_ids, found, strict=True))
        return Evaluated(by_image, float(total_loss(losses)), count)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        """AdamW, and a schedule stepped after every optimizer step."""
        optimizer = build_optimizer(self.network, self._config)
        schedule = build_schedule(
            optimizer, self._config, int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
