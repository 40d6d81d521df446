"""Upstream's nano for benchmarks/train_step.py, in its own environment (peer_env.sh).

argv: threads, and where our weights are.
"""

import sys

import torch
from rfdetr import RFDETRNano  # type: ignore[import-not-found]
from rfdetr.models import build_criterion_from_config  # type: ignore[import-not-found]
from torch import Tensor, nn

from benchmarks.baselines.worker import Losses, Targets, serve


def build() -> tuple[nn.Module, Losses]:
    """Upstream's network with our weights."""
    api = RFDETRNano(pretrain_weights=None)
    model = api.model.model
    parameters = torch.load(sys.argv[2], weights_only=True)
    model.load_state_dict({**dict(model.named_buffers()), **parameters}, strict=True)
    criterion, _ = build_criterion_from_config(
        api.model_config, api.get_train_config(dataset_dir=".")
    )

    def losses(images: Tensor, targets: Targets) -> dict[str, Tensor]:
        found = criterion(model(images), targets)
        return {name: weight * found[name] for name, weight in criterion.weight_dict.items()}

    return model, losses


if __name__ == "__main__":
    serve(build)
