"""What happens around training: weight averaging, AP of the average, keeping the best."""

import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.evaluation import average_precision
from trainer.checkpoint import save_checkpoint
from trainer.config import TrainConfig
from trainer.module import DetectionModule

_RAMP_STEPS = 100.0

logger = logging.getLogger(__name__)


def weight_average(decay: float) -> WeightAveraging:
    """Exponential moving average of the weights; validation and the kept files use it.

    The decay ramps up as `decay * (1 - exp(-u / 100))` over u optimizer steps, so that the first
    random weights do not linger (training.md section 4).
    """

    def average(kept: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        ramped = decay * (1 - math.exp(-float(updates) / _RAMP_STEPS))
        return ramped * kept + (1 - ramped) * current

    return WeightAveraging(avg_fn=average)


class BestByAP(pl.Callback):
    """Computes AP on the valid split and keeps the weights with the highest AP50:95.

    Stands before the weight average in the list of callbacks, so that the module still holds the
    averaged weights when the epoch's validation ends.
    """

    def __init__(self, annotations: Path, config: TrainConfig, classes: ClassTable) -> None:
        self._annotations = annotations
        self._config = config
        self._classes = classes
        self._best = -1.0
        self._found: dict[int, Detections] = {}

    @property
    def path(self) -> Path:
        """The checkpoint of the best weights so far."""
        return self._config.output / "checkpoint_best_total.pth"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Has the last epoch validated, whatever the interval."""
        if trainer.current_epoch + 1 == self._config.epochs:
            trainer.check_val_every_n_epoch = 1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the last epoch's detections."""
        self._found = {}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        *_: Any,
    ) -> None:
        """Collects what `validation_step` found."""
        self._found.update(outputs)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs AP and saves the weights when they are the best."""
        result = average_precision(self._annotations, self._found)
        pl_module.log_dict(
            {
                "val/mAP_50_95": result.ap,
                "val/mAP_50": result.ap50,
                "val/mAP_75": result.ap75,
                **{f"val/AP/{name}": ap for name, ap in result.per_class.items()},
            }
        )
        logger.info(
            "epoch %d: valid AP50:95 %.4f, AP50 %.4f", trainer.current_epoch, result.ap, result.ap50
        )
        if result.ap > self._best:
            self._best = result.ap
            assert isinstance(pl_module, DetectionModule)
            save_checkpoint(
                self.path,
                pl_module.model,
                classes=self._classes,
                resolution=self._config.side,
                antialias=self._config.antialias,
            )

    def state_dict(self) -> dict[str, Any]:
        """The best AP so far, for a resumed run."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best AP of the resumed run, unless its weights lie in another folder."""
        if self.path.is_file():
            self._best = state_dict["best"]
