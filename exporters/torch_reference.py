"""A checkpoint as a session, so that the gate runs it as it runs any artifact."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rfdetr_edge.backends import TensorSpec, check_feeds
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.metadata import ModelMetadata
from trainer.model.rfdetr import RFDETR


class TorchSession:
    """The network in evaluation mode on the CPU, with the names and shapes of an export.

    It is the model of the checkpoint itself, not the copy that was prepared for tracing.
    """

    def __init__(self, model: RFDETR, metadata: ModelMetadata) -> None:
        self._model = model.eval()
        self._metadata_json = metadata.to_json()
        float32 = np.dtype(np.float32)
        queries, slots = model.variant.num_queries, model.slots
        self._inputs = (TensorSpec("input", (None, 3, *metadata.input.resolution), float32),)
        self._outputs = (
            TensorSpec("dets", (None, queries, 4), float32),
            TensorSpec("labels", (None, queries, slots), float32),
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """`input`: (any batch, 3, H, W)."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """`dets` and `labels`."""
        return self._outputs

    @property
    def metadata_json(self) -> str:
        """The document the artifact will carry."""
        return self._metadata_json

    @property
    def provider(self) -> str:
        """Always torch on the CPU."""
        return "torch-cpu"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One forward pass. Raises ArtifactError when the weights are broken."""
        check_feeds(self._inputs, feeds)
        with torch.no_grad():
            boxes, logits = self._model(torch.from_numpy(feeds["input"])).final
        if not boxes.isfinite().all() or logits.isnan().any():
            raise ArtifactError(
                "the checkpoint gives NaN or infinity: its weights are broken; export one of an "
                "earlier epoch"
            )
        return {"dets": boxes.numpy(), "labels": logits.numpy()}

    def close(self) -> None:
        """The model belongs to whoever loaded it."""
