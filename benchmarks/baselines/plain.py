"""An ONNX file run with onnxruntime, Pillow and NumPy by hand; a contender (benchmarks/child.py).

What one writes in half an hour with upstream's documentation of its outputs at hand.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.baselines.session import about, open_session
from benchmarks.protocol import Mark

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_SELECTED = 300
_THRESHOLD = 0.5


class _Plain:
    """See `protocol.Runner`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._session = open_session(options)
        feed = self._session.get_inputs()[0]
        self._name, self._height, self._width = feed.name, feed.shape[2], feed.shape[3]

    def turn(self, path: str, mark: Mark) -> int:
        with Image.open(path) as file:
            image = file.convert("RGB")
        mark("decode")
        small = image.resize((self._width, self._height), Image.Resampling.BILINEAR)
        values = (np.asarray(small, np.float32) / 255.0 - _MEAN) / _STD
        tensor = np.ascontiguousarray(values.transpose(2, 0, 1)[None])  # (1, 3, H, W)
        mark("preprocess")
        dets, labels = self._session.run(["dets", "labels"], {self._name: tensor})
        mark("infer")
        scores = 1.0 / (1.0 + np.exp(-labels[0]))  # (Q, C)
        best = np.argsort(-scores, axis=None)[:_SELECTED]
        kept = best[scores.ravel()[best] > _THRESHOLD]
        cxcywh = dets[0][kept // scores.shape[1]]  # (N, 4)
        corners = cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2
        xyxy = np.concatenate(corners, axis=1) * np.tile(image.size, 2)
        mark("postprocess")
        return len(xyxy)

    def about(self) -> dict[str, Any]:
        return about(self._options)

    def scenarios(self) -> Mapping[str, Callable[..., Any]]:
        return {}


def load(options: Mapping[str, Any]) -> _Plain:
    """options: see baselines/session.py."""
    return _Plain(options)
