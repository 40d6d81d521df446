"""Checkpoint to ONNX, with everything a device needs inside, compared with torch on the spot.

Input `input` (B, 3, H, W), normalised float32; outputs `dets` (B, Q, 4), cxcywh in 0-1 and
unbounded, and `labels` (B, Q, C), raw logits, then `masks` (B, Q, H/4, W/4), logits, or `keypoints`
(B, Q, padded points, 8), raw: the names and the order the field reads.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from exporters.export_form import ExportForm, fixed, fp32_metadata
from exporters.onnx_cleanup import cleaned
from exporters.onnx_graph import BATCH_AXIS, add_notes, finish, replace_metadata
from exporters.torch_reference import TorchSession, output_shapes
from exporters.verify import Comparison, compare, gate_images, reject
from rfdetr_edge.backends import open_session
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.files import make_folder, replacing
from rfdetr_edge.metadata import ModelMetadata
from trainer.checkpoint import Checkpoint
from trainer.model.rfdetr import RFDETR

_BACKBONE_TOLERANCE = 1e-3  # normalised features are of size 1; rounding gives some 1e-5
OPSETS = range(17, 21)  # GridSample needs 16, LayerNormalization 17; the tracer ends at 20


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """How to export.

    shape: (height, width) of the input in pixels; None is the checkpoint's resolution.
    batch: a fixed size, or "dynamic".
    antialias: overrides the checkpoint's resize convention. notes: any JSON value.
    raw: the graph as it was traced, without exporters.onnx_cleanup.
    """

    shape: tuple[int, int] | None = None
    batch: int | Literal["dynamic"] = 1
    opset: int = 17
    antialias: bool | None = None
    notes: Any = None
    raw: bool = False


def export_onnx(
    checkpoint: Checkpoint,
    output: Path,
    options: OnnxOptions | None = None,
    *,
    images: Sequence[Path] | None,
) -> Comparison | None:
    """Writes the artifact and compares it with the checkpoint on `images`.

    images: None skips the comparison, and the metadata says so. Returns what the gate saw.
    Raises InputError for options that do not fit the variant, and ArtifactError when the artifact
    does not find what the checkpoint finds, or nothing could be compared: it is then kept as
    `<output>.rejected` for inspection, and `output` is not touched.
    """
    options = options or OnnxOptions()
    _check(options)
    metadata = _metadata(checkpoint, options)
    with replacing(output) as temporary:
        form = ExportForm(fixed(checkpoint.model, metadata))
        shapes = output_shapes(checkpoint, metadata.input.resolution)
        _trace(form, [*shapes], metadata, options, temporary)
        batch = BATCH_AXIS if options.batch == "dynamic" else options.batch
        finish(temporary, metadata, {name: (batch, *shape) for name, shape in shapes.items()})
        if images is None:
            return None
        session = open_session(temporary, provider="cpu")
        try:
            comparison = compare(TorchSession(checkpoint, metadata), session, images)
        finally:
            session.close()
        if not comparison.passed:
            raise reject(temporary, output, comparison)
        # only now, so that no file that was not compared says so
        passed = replace(metadata.provenance, verification="passed")
        replace_metadata(temporary, replace(metadata, provenance=passed))
    return comparison


def export_into(
    stem: Path,
    checkpoint: Checkpoint,
    options: OnnxOptions,
    images: str | os.PathLike[str] | None,
    backbone_only: bool,
) -> tuple[Path, str]:
    """Writes `<stem>.onnx`, or `<stem>-backbone.onnx`, and says what the comparison saw.

    images: an image or a folder of them, None for the embedded photos. The stem's folder is made.
    Errors as above.
    """
    folder = make_folder(stem.parent)
    if backbone_only:
        path = folder / f"{stem.name}-backbone.onnx"
        return path, export_backbone(checkpoint, path, options)
    path, given = folder / f"{stem.name}.onnx", None if images is None else Path(images)
    if given is not None and given.is_file():
        chosen = [given]
    else:
        chosen = gate_images(given, checkpoint.variant.task)
    return path, str(export_onnx(checkpoint, path, options, images=chosen))


class _BackboneForm(nn.Module):
    """Encoder and projectors as a function of one tensor."""

    def __init__(self, model: RFDETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.model.encoder(images)
        features: list[Tensor] = self.model.projector(maps)
        if self.model.keypoints is not None:
            features += self.model.keypoints.projector(maps)
        return features


def export_backbone(checkpoint: Checkpoint, output: Path, options: OnnxOptions) -> str:
    """Writes encoder and projectors alone, and says how far they are from torch.

    Input as above; outputs `features`, `features_1`, ..., one (B, C, h, w) for each level of the
    decoder's memory, and of a keypoint variant `cross_attn_features`, ... for the memory of its
    keypoints. Errors as above; there is no metadata but the notes.
    """
    _check(options)
    metadata = _metadata(checkpoint, options)
    memories = ["features"]
    if checkpoint.variant.task == "keypoint":
        memories.append("cross_attn_features")
    levels = range(len(checkpoint.variant.levels))
    names = [f"{memory}_{level}" if level else memory for memory in memories for level in levels]
    form = _BackboneForm(fixed(checkpoint.model, metadata))
    with replacing(output) as temporary:
        example = _trace(form, names, metadata, options, temporary)
        add_notes(temporary, metadata.provenance.notes)
        session = open_session(temporary, provider="cpu")
        try:
            found = session.run({"input": example.numpy()})
        finally:
            session.close()
        with torch.no_grad():
            wanted = dict(zip(names, form(example), strict=True))
        worst = max(float(np.abs(found[n] - wanted[n].numpy()).max()) for n in names)
        if not worst <= _BACKBONE_TOLERANCE:
            raise ArtifactError(f"the exported backbone differs from torch by {worst:.2g}")
    return f"features within {worst:.1g} of torch"


def _trace(
    form: nn.Module,
    outputs: Sequence[str],
    metadata: ModelMetadata,
    options: OnnxOptions,
    path: Path,
) -> Tensor:
    """Writes the graph and returns the input it was traced with."""
    dynamic = options.batch == "dynamic"
    # A batch of one would be taken for a size that broadcasts.
    size = 2 if options.batch == "dynamic" else options.batch
    shape = (size, 3, *metadata.input.resolution)
    example = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    names = ("input", *outputs)
    with warnings.catch_warnings():
        # Sizes other than the batch are meant to become constants (trainer.model.layers).
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # The tracer gives standard operators at opset 17, which the newer exporter does not.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export.*")
        torch.onnx.export(
            form,
            (example,),
            str(path),
            input_names=[names[0]],
            output_names=list(names[1:]),
            opset_version=options.opset,
            dynamic_axes={name: {0: BATCH_AXIS} for name in names} if dynamic else None,
            dynamo=False,
        )
    if not options.raw:
        onnx.save(cleaned(onnx.load(path)), path)
    return example


def _check(options: OnnxOptions) -> None:
    if options.batch != "dynamic" and options.batch < 1:
        raise InputError(f"batch must be at least 1 or dynamic, not {options.batch}")
    if options.opset not in OPSETS:
        raise InputError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, not {options.opset}")


def _metadata(checkpoint: Checkpoint, options: OnnxOptions) -> ModelMetadata:
    return fp32_metadata(checkpoint, options.shape, options.antialias, options.notes)
