"""A checkpoint as a session, so that the gate runs it as it runs any artifact."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rfdetr_edge.backends import TensorSpec, check_feeds
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.keypoints import CHANNELS
from rfdetr_edge.metadata import ModelMetadata
from rfdetr_edge.variants import MASK_STRIDE
from trainer.checkpoint import Checkpoint
from trainer.model.output import raw_outputs


class TorchSession:
    """The network in evaluation mode on the CPU, with the names and shapes of an export.

    It is the model of the checkpoint itself, not the copy that was prepared for tracing.
    metadata: of the artifact; what the outputs mean is taken from the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, metadata: ModelMetadata) -> None:
        self._model = checkpoint.model.eval()
        self._metadata_json = replace(metadata, **output_facts(checkpoint)).to_json()
        float32, resolution = np.dtype(np.float32), metadata.input.resolution
        self._inputs = (TensorSpec("input", (None, 3, *resolution), float32),)
        self._outputs = tuple(
            TensorSpec(name, (None, *shape), float32)
            for name, shape in output_shapes(checkpoint, resolution).items()
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """`input`: (any batch, 3, H, W)."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of `output_shapes`."""
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
            found = raw_outputs(self._model(torch.from_numpy(feeds["input"])).final)
        if not found.are_numbers():
            raise ArtifactError(
                "the checkpoint gives NaN or infinity: its weights are broken; export one of an "
                "earlier epoch"
            )
        return {name: array for name, array in found._asdict().items() if array is not None}

    def close(self) -> None:
        """The model belongs to whoever loaded it."""


def output_shapes(
    checkpoint: Checkpoint, resolution: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """The outputs of an export in their order: name -> shape without the batch."""
    queries = checkpoint.variant.num_queries
    shapes: dict[str, tuple[int, ...]] = {
        "dets": (queries, 4),
        "labels": (queries, checkpoint.model.slots),
    }
    if checkpoint.variant.task == "segmentation":
        shapes["masks"] = (queries, *(side // MASK_STRIDE for side in resolution))
    if checkpoint.schema is not None:
        columns = len(checkpoint.schema.classes) * checkpoint.schema.widest
        shapes["keypoints"] = (queries, columns, CHANNELS)
    return shapes


def output_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of ModelMetadata that say what the outputs of a checkpoint mean."""
    task = checkpoint.variant.task
    return {
        "task": task,
        "classes": checkpoint.classes,
        "mask_stride": MASK_STRIDE if task == "segmentation" else None,
        "keypoints": checkpoint.schema,
    }
