"""metrics.csv holds every epoch's metrics exactly, also after a run was killed and resumed."""

import csv
from pathlib import Path

import matplotlib as mpl
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rfdetr_edge.images import read_image
from trainer.log import MetricsCsv, plot_curves

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 under torch 2.13
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.* directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Killed(Exception):
    """What stands for the end of the process."""


class Line(pl.LightningModule):
    """The smallest module that logs what ours logs. It ends the run before `killed_at`."""

    def __init__(self, killed_at: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.killed_at = killed_at
        self.losses: list[list[float]] = []

    def on_train_epoch_start(self) -> None:
        self.losses.append([])

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        if self.global_step == self.killed_at:
            raise Killed
        loss = (self.layer(batch) - 1 / 3).square().mean()
        self.losses[-1].append(loss.item())
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        self.log("shown", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        self.log("val/mAP_50_95", self.layer.weight.sigmoid().sum())
        self.log("val/AP/cat", 1 / 3)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD([{"params": self.layer.weight}], lr=0.1)
        optimizer.add_param_group({"params": self.layer.bias, "lr": 0.3})
        halved = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": halved, "interval": "step"},
        }


def _fit(
    folder: Path, module: Line, *, resume: Path | None = None, epochs: int = 4, every: int = 1
) -> Line:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        check_val_every_n_epoch=every,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[
            # the order given is not the order run: checkpoints come last
            ModelCheckpoint(
                folder,
                filename="last",
                enable_version_counter=False,
                save_on_train_epoch_end=True,
            ),
            MetricsCsv(folder / "metrics.csv"),
        ],
    )
    batches = [DataLoader(torch.tensor([[1.0], [2.0], [3.0]])) for _ in range(2)]
    trainer.fit(module, *batches, ckpt_path=resume, weights_only=True)
    return module


def _start() -> Line:
    torch.manual_seed(0)
    return Line()


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_an_epoch_with_the_logged_values(tmp_path):
    module = _fit(tmp_path, _start())
    rows = _rows(tmp_path)
    assert list(rows[0]) == ["epoch", "step", "lr", "train/loss", "val/AP/cat", "val/mAP_50_95"]
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["step"] for row in rows] == ["3", "6", "9", "12"]
    # the bias's rate is the highest; the epoch's last step is its third
    assert [float(row["lr"]) for row in rows] == [0.3 * 0.5**step for step in (2, 5, 8, 11)]
    means = [sum(epoch) / len(epoch) for epoch in module.losses]
    assert [float(row["train/loss"]) for row in rows] == pytest.approx(means, rel=1e-6)


def test_values_read_back_equal(tmp_path):
    module = _fit(tmp_path, _start())
    last = _rows(tmp_path)[-1]
    assert float(last["val/mAP_50_95"]) == module.layer.weight.sigmoid().item()
    assert float(last["val/AP/cat"]) == torch.tensor(1 / 3).item()


def test_only_a_validated_epoch_has_val_cells(tmp_path):
    _fit(tmp_path, _start(), every=2)
    assert [bool(row["val/mAP_50_95"]) for row in _rows(tmp_path)] == [False, True, False, True]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("killed_at", [3, 7, 9])
def test_a_killed_and_resumed_run_has_the_undisturbed_file(tmp_path, killed_at, every):
    whole, broken, moved = (tmp_path / name for name in ("whole", "broken", "moved"))
    for folder in (whole, broken, moved):
        folder.mkdir()
    _fit(whole, _start(), every=every)
    torch.manual_seed(0)
    with pytest.raises(Killed):
        _fit(broken, Line(killed_at), every=every)
    assert len(_rows(broken)) == killed_at // 3
    for folder in (moved, broken):
        _fit(folder, Line(), resume=broken / "last.ckpt", every=every)
        assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_row_without_its_checkpoint_is_written_again(tmp_path):
    _fit(tmp_path, _start(), epochs=2)
    earlier = (tmp_path / "last.ckpt").read_bytes()
    _fit(tmp_path, Line(), resume=tmp_path / "last.ckpt")
    undisturbed = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(earlier)  # killed after the row, before the checkpoint
    _fit(tmp_path, Line(), resume=tmp_path / "last.ckpt")
    assert (tmp_path / "metrics.csv").read_bytes() == undisturbed


def test_a_new_run_replaces_the_file_of_an_old_one(tmp_path):
    _fit(tmp_path, _start())
    _fit(tmp_path, Line(), epochs=1)
    assert [row["epoch"] for row in _rows(tmp_path)] == ["0"]


@pytest.mark.parametrize(
    ("precision", "shown"),
    [
        ("", 0),
        (",val/mAP_50_95,val/mAP_50,val/mAP_75", 2),
        (",val/mAP_50_95,val/segm_mAP_50_95,val/segm_mAR", 2),
        (",val/keypoint_map_50_95,val/keypoint_map_50,val/mAP_50", 3),
    ],
)
def test_curves_show_losses_and_ap(tmp_path, precision, shown):
    values = ",0.25,0.5,0.1" if precision else ""
    gap = "," * values.count(",")
    table = tmp_path / "metrics.csv"
    table.write_text(
        f"epoch,step,lr,train/loss,val/loss{precision}\n"
        f"0,3,0.1,5.0,6.0{values}\n1,6,0.1,4.0,{gap}\n2,9,0.1,3.0,5.5{values}\n"
    )
    plot_curves(table, tmp_path / "curves.png")
    image = read_image(tmp_path / "curves.png", upright=False)
    assert image.shape == (500, 1200, 3)
    colours = [
        tuple(round(255 * part) for part in mpl.colors.to_rgb(f"C{line}")) for line in range(3)
    ]
    halves = [
        sum(bool((half == colour).all(axis=2).any()) for colour in colours)
        for half in (image[:, :600], image[:, 600:])
    ]
    assert halves == [2, shown]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]
