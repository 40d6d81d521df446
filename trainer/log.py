"""metrics.csv, one row an epoch, and its curves as a PNG.

Lightning's CSVLogger is not used: it deletes the file of the run that is resumed.
"""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from matplotlib.figure import Figure
from torch.optim import Optimizer

from rfdetr_edge.files import replacing


class MetricsCsv(pl.Callback):
    """Writes what was logged under train/ and val/, whole, at the end of every epoch.

    Beside the metrics: epoch; step, the optimizer steps so far; lr, the highest rate of all
    parameter groups in the epoch's last step. An epoch that was not validated has empty cells.

    The rows also travel in Lightning's checkpoints, which are written after them, so a resumed run
    ends with the file of a run that was never stopped, in whichever folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, float]] = []  # value by column, for those that have one
        self._row: dict[str, float] = {}  # of the running epoch

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Takes the rate of this step; after it, the schedule sets that of the next."""
        self._row["lr"] = max(float(group["lr"]) for group in optimizer.param_groups)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the validation's metrics; at the end of the epoch they may be an older one's."""
        self._row |= _logged(trainer, "val/")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._row |= {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self._rows.append(self._row | _logged(trainer, "train/"))
        self._row = {}
        if not trainer.is_global_zero:
            return
        others = {name for row in self._rows for name in row} - {"epoch", "step"}
        with replacing(self._path) as new, new.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["epoch", "step", *sorted(others)], lineterminator="\n")
            table.writeheader()
            table.writerows(self._rows)  # floats by repr, so that they read back equal

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = list(state_dict["rows"])


def _logged(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    """To be called on every rank, since reading metrics may reduce them over ranks."""
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if name.startswith(prefix)}


def plot_curves(table: Path, png: Path) -> None:
    """Draws a metrics.csv over epochs, 1200x500 pixels: losses left (val dashed), AP right."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(12, 5), layout="constrained")  # no pyplot: no global state
    losses, precision = figure.subplots(1, 2)
    for name in rows[0]:
        is_loss = name.startswith(("train/loss", "val/loss"))
        if is_loss or name.lower().endswith(("map_50_95", "map_50")):
            axes = losses if is_loss else precision
            style = "--" if name == "val/loss" else "-"
            points = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
            axes.plot(*zip(*points, strict=True), style, marker=".", label=name)
            axes.legend()
    losses.set(title="Losses", xlabel="epoch")
    precision.set(title="AP on the valid split", xlabel="epoch", ylim=(0, 1))
    for axes in (losses, precision):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with replacing(png) as temporary:
        figure.savefig(temporary, dpi=100)
