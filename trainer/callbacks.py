"""AP and F1 at validation, keeping the best weights, stopping early; files to go on from."""

import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from rfdetr_edge.datasets import Dataset, Split
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import InputError
from rfdetr_edge.evaluation import Kind, average_precision
from rfdetr_edge.f1 import best_threshold
from rfdetr_edge.variants import Task
from trainer.checkpoint_file import write_file
from trainer.config import ModelConfig, TrainConfig
from trainer.module import DetectionModule, Evaluated
from trainer.ranks import place

logger = logging.getLogger(__name__)

# What is compared with the annotations, and upstream's names of its AP and AR. The weights are the
# best by what comes last; by "mar" they are, with masks, those of the best boxes (training.md 7).
_BOXES: tuple[Kind, str, str] = ("bbox", "mAP", "mAR")
_MEASURES: dict[Task, tuple[tuple[Kind, str, str], ...]] = {
    "detection": (_BOXES,),
    "segmentation": (_BOXES, ("segm", "segm_mAP", "segm_mAR")),
    "keypoint": (_BOXES, ("keypoints", "keypoint_map", "keypoint_mar")),
}


class BestWeights(pl.Callback):
    """Evaluates the valid split, keeps the weights with the best metric, ends a run that stalls.

    Files in the output folder: checkpoint_best_ema.pth, or checkpoint_best_regular.pth without a
    weight average, and checkpoint_best_total.pth, which always exists once an epoch was validated.
    """

    def __init__(self, dataset: Dataset, model: ModelConfig, config: TrainConfig) -> None:
        self._dataset, self._config = dataset, config
        self._measures = _MEASURES[model.row.task]
        self._best = -1.0
        self._smoothed: float | None = None
        self._reference = -1.0  # what early stopping wants to see beaten by its min_delta
        self._stale = 0
        self._evaluated: list[Evaluated] = []
        self.test_result: dict[str, float] = {}

    @property
    def path(self) -> Path:
        """The checkpoint of the best weights so far."""
        return self._config.output_dir / "checkpoint_best_total.pth"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Has the last epoch validated, whatever the interval."""
        if trainer.current_epoch + 1 == self._config.epochs:
            trainer.check_val_every_n_epoch = 1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self._evaluated.append(outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the metrics; saves the weights when they are the best."""
        kind, ap, ar = self._measures[-1]
        own, recall = f"val/{ap}_50_95", "val/mAR" if kind == "segm" else f"val/{ar}"
        metrics = self._metrics("val", self._dataset.valid)
        for name, value in metrics.items():
            on_bar = name in ("val/mAP_50_95", own)
            pl_module.log(name, value, prog_bar=on_bar, rank_zero_only=True)
        epoch = trainer.current_epoch
        shown = {name: metrics[name] for name in ("val/mAP_50_95", own, "val/mAP_50", "val/loss")}
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        logger.info("epoch %d: %s", epoch, text)
        if not math.isfinite(metrics["val/loss"]):
            raise InputError(
                f"the weights became NaN or infinite in epoch {epoch}: start again with a lower lr "
                "or a longer warm-up (warmup_epochs)"
            )
        # the last weights count when no epoch did
        last = epoch + 1 == self._config.epochs
        if epoch < self._config.skip_best_epochs and not last:
            return
        value = metrics[recall if self._config.best_model_metric == "mar" else own]
        alpha = self._config.smooth_alpha if self._smoothed is not None else 0.0
        value = self._smoothed = alpha * (self._smoothed or 0.0) + (1 - alpha) * value
        if value > self._best:
            self._best = value
            assert isinstance(pl_module, DetectionModule)
            source = "ema" if self._config.use_ema else "regular"
            if trainer.is_global_zero:
                pl_module.save(self._config.output_dir / f"checkpoint_best_{source}.pth", epoch)
                pl_module.save(self.path, epoch)
        if value >= self._reference + self._config.early_stopping_min_delta:
            self._reference, self._stale = value, 0
        else:
            self._stale += 1
        if self._config.early_stopping and self._stale >= self._config.early_stopping_patience:
            logger.info("epoch %d: no better for %d validations, stopped", epoch, self._stale)
            trainer.should_stop = True

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the metrics of the test split."""
        assert self._dataset.test is not None
        self.test_result = self._metrics("test", self._dataset.test)
        for name, value in self.test_result.items():
            pl_module.log(name, value, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to judge its epochs."""
        judged = {"best": self._best, "reference": self._reference, "stale": self._stale}
        return {**judged, "smoothed": self._smoothed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best metric of the resumed run, unless its weights lie in another folder."""
        self._smoothed = state_dict["smoothed"]
        if self.path.is_file():
            self._best, self._stale = state_dict["best"], state_dict["stale"]
            self._reference = state_dict["reference"]

    def _metrics(self, prefix: str, split: Split) -> dict[str, float]:
        """Of all ranks' detections; the same on every rank."""
        found: dict[int, Detections] = {}
        batches = _of_all_ranks(self._evaluated)
        for batch in batches:
            found.update(batch.found)
        targets = sum(batch.targets for batch in batches)
        metrics = {"loss": sum(batch.loss for batch in batches) / max(targets, 1)}
        for kind, ap, ar in self._measures:
            most = None if kind == "keypoints" else self._config.eval_max_dets
            result = average_precision(split.document, found, kind=kind, max_detections=most)
            levels = {"50_95": result.ap, "50": result.ap50, "75": result.ap75}
            metrics |= {f"{ap}_{level}": value for level, value in levels.items()}
            metrics[ar] = result.ar
            if kind == "bbox":
                metrics |= {f"AP/{name}": value for name, value in result.per_class.items()}
        sweep = best_threshold(split.document, found)
        metrics |= {"F1": sweep.f1, "precision": sweep.precision, "recall": sweep.recall}
        metrics["best_threshold"] = sweep.threshold
        return {f"{prefix}/{name}": value for name, value in metrics.items()}


class EpochFiles(Checkpoint):
    """Writes what a run can go on from after every epoch: last.ckpt, some as checkpoint_<epoch>.

    Lightning calls it after the other callbacks, whose state it keeps.
    """

    def __init__(self, folder: Path, interval: int) -> None:
        self._folder, self._interval = folder, interval

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes last.ckpt last, so that a run killed before it makes up for the other one."""
        epoch = trainer.current_epoch
        kept = [f"checkpoint_{epoch}"] if (epoch + 1) % self._interval == 0 else []
        for name in (*kept, "last"):
            trainer.save_checkpoint(self._folder / f"{name}.ckpt")


class WholeFiles(TorchCheckpointIO):
    """Lightning's own goes through the system's temporary folder: on another disk, not at once."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes beside the place, and renames."""
        write_file(Path(path), checkpoint)


def _of_all_ranks(evaluated: list[Evaluated]) -> list[Evaluated]:
    _, ranks = place()
    if ranks == 1:
        return evaluated
    gathered: list[list[Evaluated]] = [[] for _ in range(ranks)]
    torch.distributed.all_gather_object(gathered, evaluated)
    return [batch for rank in gathered for batch in rank]
