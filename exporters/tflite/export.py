"""Checkpoint to an FP32 `.tflite` by litert-torch, compared with torch on the spot.

Input `input` (1, 3, H, W), normalised float32; outputs as those of exporters.onnx_export, under the
same names and in the same order. The graph is made for delegates: built-in operators alone, tensors
up to rank 4, and deformable sampling as a matrix product.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import litert_torch
import torch
from torch import Tensor, nn

from exporters.export_form import ExportForm, fixed, fp32_metadata
from exporters.tflite.gate import hand_out
from exporters.tflite.names import renamed
from exporters.torch_reference import TorchSession, output_shapes
from exporters.verify import Comparison
from rfdetr_edge.errors import ArtifactError
from trainer.checkpoint import Checkpoint
from trainer.model.attention import DeformableAttention
from trainer.model.rfdetr import RFDETR
from trainer.model.sampling import multiplied


@dataclass(frozen=True, slots=True)
class TfliteOptions:
    """How to export; a run always takes one image.

    shape: (height, width) of the input in pixels; None is the checkpoint's resolution.
    antialias: overrides the checkpoint's resize convention. notes: any JSON value.
    """

    shape: tuple[int, int] | None = None
    antialias: bool | None = None
    notes: Any = None


def export_tflite(
    checkpoint: Checkpoint,
    output: Path,
    options: TfliteOptions | None = None,
    *,
    images: Sequence[Path] | None,
) -> dict[str, Comparison]:
    """Writes the artifact and its sidecar, and compares it with the checkpoint on `images`.

    images: None skips the comparison, and the metadata says so; the file is run once all the same.
    Returns what the gate saw, by provider.
    Raises InputError for options that do not fit the variant, ArtifactError when litert-torch makes
    no artifact, and when the artifact does not run, or does not find what the checkpoint finds: it
    is then kept as `<output>.rejected` for inspection. `output` is not touched.
    """
    options = options or TfliteOptions()
    metadata = fp32_metadata(checkpoint, options.shape, options.antialias, options.notes)
    converter = f"litert-torch {litert_torch.__version__}"
    provenance = replace(metadata.provenance, converter=converter)
    metadata = replace(metadata, provenance=provenance)
    resolution = metadata.input.resolution
    outputs = output_shapes(checkpoint, resolution)
    return hand_out(
        lambda: _converted(fixed(checkpoint.model, metadata), resolution, [*outputs]),
        output,
        metadata,
        outputs,
        TorchSession(checkpoint, metadata),
        images,
    )


class _NamedForm(nn.Module):
    """The network as the signature has it: names of one input and of all outputs."""

    def __init__(self, model: RFDETR, outputs: Sequence[str]) -> None:
        super().__init__()
        self.form = ExportForm(model)
        self.outputs = tuple(outputs)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.outputs, self.form(input), strict=True))


def _converted(model: RFDETR, resolution: tuple[int, int], outputs: Sequence[str]) -> bytes:
    """A .tflite of the network, whose sampling is changed."""
    for layer in model.modules():
        if isinstance(layer, DeformableAttention):
            layer.sampling = multiplied
    example = torch.zeros(1, 3, *resolution)
    litert_torch.config.show_progress = False  # it would go to stdout
    with warnings.catch_warnings():  # of torch.export and of libraries that are of no use here
        warnings.simplefilter("ignore")
        form = _NamedForm(model, outputs).eval().requires_grad_(False)  # less to trace
        try:
            converted = litert_torch.convert(form, sample_kwargs={"input": example})
        except MemoryError:
            raise
        except Exception as error:  # of many kinds: torch's, MLIR's, and Exception itself
            lines = str(error).strip().splitlines()
            raise ArtifactError(
                f"litert-torch {litert_torch.__version__} cannot convert this network: "
                f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}; install the "
                "versions of constraints.txt, or take --converter onnx2tf"
            ) from error
    return renamed(converted.model_content())
