"""Our nano for benchmarks/train_step.py. argv: threads, and where its weights go for upstream."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.baselines.worker import CLASSES, Losses, Targets, serve
from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint_names import to_file_names
from trainer.config import TrainConfig
from trainer.losses import detection_losses
from trainer.model.rfdetr import RFDETR
from trainer.targets import Target


def build() -> tuple[nn.Module, Losses]:
    """A network of random weights, which are also written down."""
    torch.manual_seed(0)
    model = RFDETR(VARIANTS["nano"], CLASSES + 1)
    coefficients = TrainConfig(dataset_dir=Path()).coefficients
    torch.save(to_file_names(model.state_dict()), Path(sys.argv[2]))

    def losses(images: Tensor, targets: Targets) -> dict[str, Tensor]:
        found = detection_losses(
            model(images),
            [Target(t["boxes"], t["labels"], 0, (1, 1)) for t in targets],
            groups=model.variant.groups,
            coefficients=coefficients,
        )
        return {
            name: weight * value
            for name, value in found.items()
            for base, weight in coefficients.items()
            if name.startswith(base)
        }

    return model, losses


if __name__ == "__main__":
    serve(build)
