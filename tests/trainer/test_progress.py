"""The progress bar shows what was logged for it and the time left of the whole run."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.callbacks.progress import rich_progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rfdetr_edge.errors import InputError
from trainer import progress
from trainer.progress import progress_bar

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.* directory .* exists and is not empty"),
    # Lightning 2.6 under torch 2.13
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
]


class Timed(pl.LightningModule):
    """Four batches an epoch of 10 s each, a validation of 20 s, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.now = 1000.0

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        self.now += 10
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        self.now += 20
        self.log("val/mAP_50_95", 0.5, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Shown(pl.Callback):
    """Keeps what the bar shows: as text after each batch, and the names at each epoch's end."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.names: set[str] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_index) -> None:
        shown = trainer.progress_bar_callback.get_metrics(trainer, pl_module)
        self.left.append(shown["left"])
        self.names = set(shown)


@pytest.mark.parametrize("kind", ["tqdm", "rich"])
def test_the_bar_shows_loss_ap_and_time_left(kind, tmp_path, monkeypatch, capfd):
    module, shown = Timed(), Shown()
    monkeypatch.setattr(progress, "monotonic", lambda: module.now)
    _trainer(progress_bar(kind), shown).fit(module, *_loaders())
    assert shown.left == [
        # three epochs by the batches of the first, 40 s each: validation is not known yet
        *("0:01:50", "0:01:40", "0:01:30", "0:01:20"),
        # from then on by the finished ones, 60 s each
        *("0:01:50", "0:01:40", "0:01:30", "0:01:20"),
        *("0:00:50", "0:00:40", "0:00:30", "0:00:20"),
    ]
    assert {"train/loss", "val/mAP_50_95", "left"} <= shown.names
    assert "left" in capfd.readouterr().out


def _loaders() -> list[DataLoader]:
    return [DataLoader(torch.ones(4, 1)), DataLoader(torch.ones(1, 1))]


def _trainer(*callbacks: pl.Callback, checkpoints: bool = False, epochs: int = 3) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=checkpoints,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )


def test_a_resumed_run_counts_its_own_epochs(tmp_path, monkeypatch):
    save = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    module, shown = Timed(), Shown()
    monkeypatch.setattr(progress, "monotonic", lambda: module.now)
    _trainer(progress_bar("tqdm"), save, checkpoints=True, epochs=1).fit(module, *_loaders())
    trainer = _trainer(progress_bar("tqdm"), save, shown, checkpoints=True)
    trainer.fit(module, *_loaders(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert shown.left == [
        *("0:01:10", "0:01:00", "0:00:50", "0:00:40"),
        *("0:00:50", "0:00:40", "0:00:30", "0:00:20"),
    ]


def test_no_bar_when_none_is_asked_for():
    assert progress_bar(None) is None


def test_a_missing_rich_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(rich_progress, "_RICH_AVAILABLE", False)
    with pytest.raises(InputError, match="pip install rich, or choose 'tqdm'"):
        progress_bar("rich")
