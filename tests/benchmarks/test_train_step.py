"""The step benchmark drives real processes; upstream's own needs its environment, so not here."""

import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.train_step import STEP, difference, worker
from rfdetr_edge.errors import BackendError


def test_a_worker_trains_and_shares_its_weights(tmp_path: Path) -> None:
    ours = worker(Path(sys.executable), "ours", threads=1, weights=tmp_path / "weights.pt")
    ready, first, second = ours.answer(), ours.ask(STEP), ours.ask(STEP)
    ours.end(at_once=False)
    assert ready["torch"] == torch.__version__
    assert sum(second["losses"].values()) < sum(first["losses"].values())
    assert len(first["losses"]) == 9  # class, box and GIoU of two layers and of the proposals
    # parameters, gradients and two moments of AdamW, 4 bytes each, are the least that a step holds
    weights = torch.load(tmp_path / "weights.pt")
    megabytes = 16 * sum(tensor.numel() for tensor in weights.values()) / 2**20
    assert second["peak_mb"] - ready["imported_mb"] > megabytes
    assert first["seconds"] > 0


def test_a_process_that_cannot_start_is_named(tmp_path: Path) -> None:
    nobody = worker(Path(sys.executable), "nobody", threads=1, weights=tmp_path / "weights.pt")
    with pytest.raises(BackendError, match="process of nobody ended"):
        nobody.answer()
    nobody.end(at_once=True)


def test_losses_are_compared_by_name() -> None:
    assert difference({"a": 1.01, "b": 2.0}, {"a": 1.0, "b": 2.0}) == pytest.approx(0.01)
    assert math.isnan(difference({"a": 1.0, "b": math.nan}, {"a": 1.0, "b": 2.0}))
    with pytest.raises(SystemExit, match="not the same losses"):
        difference({"a": 1.0}, {"a": 1.0, "b": 2.0})
