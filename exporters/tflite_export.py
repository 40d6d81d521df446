"""Checkpoint to an FP32 `.tflite` by litert-torch, compared with torch on the spot.

Input `input` (1, 3, H, W), normalised float32; outputs as those of exporters.onnx_export, under the
same names and in the same order. The graph is made for delegates: built-in operators alone, tensors
up to rank 4, and deformable sampling as a matrix product.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

from exporters.export_form import ExportForm, fixed, fp32_metadata, reject
from exporters.tflite_names import renamed
from exporters.torch_reference import TorchSession, output_shapes
from exporters.verify import Comparison, compare
from rfdetr_edge.associated import with_document, write_sidecar
from rfdetr_edge.backends import Session, TensorSpec, open_session, proving_providers
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import BackendError
from rfdetr_edge.files import replacing
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
    step: Callable[[str], None] = lambda _: None,
) -> dict[str, Comparison]:
    """Writes the artifact and its sidecar, and compares it with the checkpoint on `images`.

    images: None skips the comparison, and the metadata says so; the file is run once all the same.
    step: is told what begins, in a few words; the first takes the longest, 2 minutes of nano.
    Returns what the gate saw, by provider.
    Raises InputError for options that do not fit the variant, and ArtifactError when the artifact
    does not run, or does not find what the checkpoint finds: it is then kept as `<output>.rejected`
    for inspection, and `output` is not touched.
    """
    options = options or TfliteOptions()
    metadata = fp32_metadata(checkpoint, options.shape, options.antialias, options.notes)
    made_by = replace(metadata.provenance, converter=f"litert-torch {litert_torch.__version__}")
    metadata = replace(metadata, provenance=made_by)
    resolution = metadata.input.resolution
    outputs = output_shapes(checkpoint, resolution)
    wanted = [
        TensorSpec(name, (1, *shape), np.dtype(np.float32))
        for name, shape in {"input": (3, *resolution), **outputs}.items()
    ]
    reference = TorchSession(checkpoint, metadata)
    seen: dict[str, Comparison] = {}
    with replacing(output) as temporary:
        step("converting the network with litert-torch")
        model = _converted(fixed(checkpoint.model, metadata), resolution, [*outputs])
        temporary.write_bytes(with_document(model, metadata.to_json()))
        try:
            _check_operators(model)
            for provider in proving_providers(output):
                step(f"running it on {provider}")
                with closing(open_session(temporary, provider=provider)) as session:
                    _check_tensors(session, wanted)
                    Detector.from_session(session).warm_up()
                    if images is not None:
                        seen[session.provider] = _compared(reference, session, images)
        except (_Refused, BackendError) as error:
            raise reject(temporary, output, error) from error
        if seen:  # only now, so that no file that was not compared says so
            passed = replace(metadata.provenance, verification="passed")
            metadata = replace(metadata, provenance=passed)
            temporary.write_bytes(with_document(model, metadata.to_json()))
        write_sidecar(output, metadata.to_json())
    return seen


class _Refused(Exception):
    """An artifact that must not be handed out, and why."""


def _check_operators(model: bytes) -> None:
    """Raises _Refused for operators that a plain LiteRT does not have, Flex ones among them."""
    file = schema.Model.GetRootAs(model, 0)
    custom = [file.OperatorCodes(at).CustomCode() for at in range(file.OperatorCodesLength())]
    foreign = sorted(name.decode() for name in custom if name)
    if foreign:
        raise _Refused(f"it needs operators that LiteRT does not have: {', '.join(foreign)}")


def _check_tensors(session: Session, wanted: Sequence[TensorSpec]) -> None:
    """Raises _Refused for inputs and outputs of other names, shapes or order."""
    found = [*session.inputs, *session.outputs]
    if found != [*wanted]:
        listed = [", ".join(map(str, specs)) for specs in (found, wanted)]
        raise _Refused(f"it has {listed[0]} instead of {listed[1]}")


def _compared(reference: Session, session: Session, images: Sequence[Path]) -> Comparison:
    comparison = compare(reference, session, images)
    if not comparison.passed:
        raise _Refused(f"on {session.provider}: {comparison}")
    return comparison


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
        converted = litert_torch.convert(form, sample_kwargs={"input": example})
    return renamed(converted.model_content())
