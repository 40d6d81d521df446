"""The Lightning module: losses in training, detections of the deployed path in validation."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.postprocess import postprocess
from trainer.config import TrainConfig
from trainer.data.module import Batch
from trainer.losses import detection_losses, total_loss
from trainer.model.rfdetr import RFDETR
from trainer.optim import build_optimizer, build_schedule


class DetectionModule(pl.LightningModule):
    """Trains one RFDETR network."""

    def __init__(self, model: RFDETR, config: TrainConfig, classes: ClassTable) -> None:
        super().__init__()
        self.model = model
        self._config = config
        self._classes = classes

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One micro-batch; all query groups."""
        output = self.model(batch.images)
        # Losses stay in float32 under autocast: matching and IoU need the digits.
        with torch.autocast(self.device.type, enabled=False):
            losses = detection_losses(output, batch.targets, groups=self.model.variant.groups)
            loss = total_loss(losses)
        parts = {f"train/{name}": losses[name] for name in ("loss_ce", "loss_bbox", "loss_giou")}
        self.log_dict(
            {"train/loss": loss, **parts},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch.targets),
        )
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> dict[int, Detections]:
        """Detections by image id, in float32, through the runtime's own postprocessing."""
        with torch.autocast(self.device.type, enabled=False):
            boxes, logits = self.model(batch.images).final
        found = postprocess(
            boxes.cpu().numpy(),
            logits.cpu().numpy(),
            source_sizes=[target.source_size for target in batch.targets],
            classes=self._classes,
            num_select=self.model.variant.num_select,
            threshold=0.0,
        )
        image_ids = [target.image_id for target in batch.targets]
        return dict(zip(image_ids, found, strict=True))

    def configure_optimizers(self) -> Any:
        """AdamW, and a schedule stepped after every optimizer step."""
        optimizer = build_optimizer(self.model, self._config)
        schedule = build_schedule(
            optimizer, self._config, int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
