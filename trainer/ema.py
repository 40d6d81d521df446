"""The exponential moving average of the weights, which is what validation sees and files keep."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from trainer.module import DetectionModule


class WeightAverage(pl.Callback):
    """After each optimizer step `average = d * average + (1 - d) * weights`.

    d = decay * (1 - exp(-u / tau)) at update u = 1, 2, ..., so that the first random weights do not
    linger; tau 0 is a constant decay (training.md section 4). Parameters and floating buffers are
    averaged, other buffers copied. The module holds the average during validation and after the
    fit; checkpoints of Lightning hold the plain weights, and the average as this callback's state.
    """

    def __init__(self, decay: float, tau: float) -> None:
        self._decay, self._tau = decay, tau
        self._updates = 0
        self._average: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: DetectionModule) -> None:
        """Starts from the weights, or goes on from the average of a resumed run."""
        current = pl_module.network.state_dict()
        start = self._average or current
        self._average = {name: start[name].to(t.device).clone() for name, t in current.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: DetectionModule, *_: Any) -> None:
        """Updates the average if the batch ended an optimizer step."""
        if trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        ramp = 1 - math.exp(-self._updates / self._tau) if self._tau else 1.0
        for name, tensor in pl_module.network.state_dict().items():
            if tensor.is_floating_point():
                self._average[name].lerp_(tensor, 1 - self._decay * ramp)
            else:
                self._average[name].copy_(tensor)

    @torch.no_grad()
    def on_validation_start(self, trainer: pl.Trainer, pl_module: DetectionModule) -> None:
        """Exchanges the weights in the module and the average."""
        for name, tensor in pl_module.network.state_dict().items():
            kept = tensor.clone()
            tensor.copy_(self._average[name])
            self._average[name] = kept

    on_validation_end = on_validation_start  # back again
    on_fit_end = on_validation_start  # and for good, also where a resumed run had nothing to do

    def state_dict(self) -> dict[str, Any]:
        """The average and how many updates it has seen."""
        return {"updates": self._updates, "average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The state of a resumed run."""
        self._updates, self._average = state_dict["updates"], state_dict["average"]
