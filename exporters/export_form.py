"""What the export of a checkpoint to any format starts from.

The network as a function of one tensor, for one resolution, and what its artifact says of itself.
"""

import copy
import json
from typing import Any

from torch import Tensor, nn

import rfdetr_edge
from exporters.torch_reference import output_facts
from rfdetr_edge.errors import InputError
from rfdetr_edge.metadata import InputSpec, ModelMetadata, Provenance
from rfdetr_edge.variants import Variant
from trainer.checkpoint import Checkpoint
from trainer.model.rfdetr import RFDETR

Shape = tuple[int, int]


class ExportForm(nn.Module):
    """The network as a function of one tensor: boxes, logits, then masks or keypoints."""

    def __init__(self, model: RFDETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for part in self.model(images).final if part is not None)


def fixed(model: RFDETR, metadata: ModelMetadata) -> RFDETR:
    """A copy whose position table is that of the artifact's resolution."""
    height, width = metadata.input.resolution
    prepared: RFDETR = copy.deepcopy(model).eval()
    patch = model.variant.patch_size
    prepared.encoder.fix_grid(height // patch, width // patch)
    return prepared


def fp32_metadata(
    checkpoint: Checkpoint, shape: Shape | None, antialias: bool | None, notes: Any
) -> ModelMetadata:
    """What an FP32 artifact of the checkpoint says before it is compared.

    shape: (height, width) in pixels. None is the checkpoint's own, as of antialias and notes.
    Raises InputError for a shape that the variant cannot take, and notes that are no JSON value.
    """
    _check(shape, checkpoint.variant)
    notes = checkpoint.notes if notes is None else notes
    try:
        json.dumps(notes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the notes are no JSON value ({error}); give others (--notes)") from None
    side = checkpoint.resolution
    return ModelMetadata(
        **output_facts(checkpoint),
        variant=checkpoint.variant.name,
        precision="fp32",
        input=InputSpec(
            shape or (side, side), checkpoint.antialias if antialias is None else antialias
        ),
        num_select=checkpoint.variant.num_select,
        provenance=Provenance(
            checkpoint_sha256=checkpoint.sha256,
            tool=f"rfdetr-edge {rfdetr_edge.__version__}",
            verification="skipped",
            notes=notes,
        ),
    )


def _check(shape: Shape | None, variant: Variant) -> None:
    block = variant.block_size
    if shape is not None and not all(map(variant.accepts, shape)):
        nearest = [max(round(side / block), 1) * block for side in shape]
        raise InputError(
            f"shape {shape[0]} {shape[1]} does not fit {variant.name}: height and width must be "
            f"multiples of {block}; the nearest is {nearest[0]} {nearest[1]}"
        )
