"""Two processes see what one process with the doubled batch sees, and learn the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 10

# Lightning starts the second process with the same command line; each writes its own file.
SCRIPT = """
import json, os, sys
from pathlib import Path
import pytorch_lightning as pl
import torch
torch.set_num_threads(1)
from rfdetr_edge.variants import VARIANTS
from trainer.config import TrainConfig, model_config
from trainer.fit import fit
from trainer.model.rfdetr import RFDETR

class Losses(pl.Callback):
    def __init__(self):
        self.values = []
    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        loss = outputs["loss"].detach().clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss /= torch.distributed.get_world_size()
        self.values.append(float(loss))

settings = json.loads(sys.argv[1])
output = Path(settings["output_dir"])
losses = Losses()
torch.manual_seed(1)
fit(RFDETR(VARIANTS["tiny"], 4), model_config("tiny", resolution=64), TrainConfig(**settings),
    callbacks=[losses])
rank = os.environ.get("LOCAL_RANK", "0")
(output / f"losses{rank}.json").write_text(json.dumps(losses.values))
"""


def _run(script: Path, dataset: Path, output: Path, **settings: object) -> None:
    given = {
        "dataset_dir": str(dataset),
        "output_dir": str(output),
        "epochs": 2,
        "accelerator": "cpu",
        "multi_scale": False,
        "num_workers": 0,
        "tensorboard": False,
        "eval_interval": 2,
        **settings,
    }
    result = subprocess.run(
        [sys.executable, str(script), json.dumps(given)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def test_two_processes_equal_one_with_the_doubled_batch(dataset, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    one, two = tmp_path / "one", tmp_path / "two"
    _run(script, dataset, one, batch_size=2)
    _run(script, dataset, two, batch_size=1, devices=2, strategy="ddp")
    alone = json.loads((one / "losses0.json").read_text())
    for rank in (0, 1):
        together = json.loads((two / f"losses{rank}.json").read_text())
        assert len(alone) == len(together) == STEPS
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (one, two)]
    header = rows[0][0].split(",")
    assert rows[1][0].split(",") == header
    last = [dict(zip(header, map(float, row[-1].split(",")), strict=True)) for row in rows]
    # every image of the valid split is counted once
    for name in ("train/loss", "val/loss", "val/mAP_50_95", "val/F1"):
        assert last[1][name] == pytest.approx(last[0][name], rel=1e-3, abs=1e-3), name
    # the second process writes nothing of its own but its losses
    extra = {path.name for path in two.iterdir()} - {path.name for path in one.iterdir()}
    assert extra == {"losses1.json"}
