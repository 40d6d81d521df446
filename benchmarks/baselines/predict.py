"""Upstream's `predict` on torch as a contender (benchmarks/child.py); needs peer_env.sh's venv."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from rfdetr import from_checkpoint  # type: ignore[import-not-found]

from benchmarks.protocol import Mark

_THRESHOLD = 0.5  # both sides' default


class _Predict:
    """See `protocol.Runner`. What `predict` does cannot be told apart, so it is one stage."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def turn(self, path: str, mark: Mark) -> int:
        with Image.open(path) as file:
            image = file.convert("RGB")
        mark("decode")
        found = len(self._model.predict(image, threshold=_THRESHOLD))
        mark("predict")
        return found

    def about(self) -> dict[str, Any]:
        return {"precision": "fp32", "settings": f"threads {torch.get_num_threads()}"}

    def scenarios(self) -> Mapping[str, Callable[..., Any]]:
        return {}


def load(options: Mapping[str, Any]) -> _Predict:
    """options: checkpoint; threads, None for torch's own."""
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    return _Predict(from_checkpoint(options["checkpoint"]))
