"""The progress bar: logged losses and AP, and the time left of the whole run."""

from datetime import timedelta
from time import monotonic
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from rfdetr_edge.errors import InputError


class _RunTime(ProgressBar):
    """Adds the time left of the run to what a bar of Lightning's shows."""

    def __init__(self) -> None:
        super().__init__()
        self._starts: list[float] = []  # of this process's epochs, in seconds

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._starts.append(monotonic())

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What was logged with `prog_bar=True`, and the time left.

        It goes by the mean of the finished epochs, in the first by its batches so far.
        """
        first, last = self._starts[0], self._starts[-1]
        spent = monotonic() - last
        if finished := len(self._starts) - 1:
            epoch = (last - first) / finished
        else:
            epoch = spent / (trainer.fit_loop.batch_idx + 1) * float(trainer.num_training_batches)
        left = max(int(trainer.max_epochs - trainer.current_epoch) * epoch - spent, 0.0)
        shown = super().get_metrics(trainer, pl_module)
        return {**shown, "left": str(timedelta(seconds=round(left)))}


class _Tqdm(_RunTime, TQDMProgressBar):
    """In plain text."""


class _Rich(_RunTime, RichProgressBar):
    """In colour."""


def progress_bar(kind: Literal["tqdm", "rich"] | None) -> pl.Callback | None:
    """The callback of a progress bar. Raises InputError where rich is asked for and missing."""
    if kind == "rich":
        try:
            return _Rich()
        except ModuleNotFoundError:
            raise InputError(
                "progress_bar='rich' needs the package rich: pip install rich, or choose 'tqdm'"
            ) from None
    return _Tqdm() if kind else None
