"""The gate of a `.tflite` in FP32, whoever converted it: what it must hold, find and say.

Built-in operators alone; one image as input, and the outputs under the names and in the order of
the ONNX artifact; and on LiteRT's XNNPACK and on its reference kernels what its source finds. Knows
nothing of torch.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from exporters.verify import Comparison, compare, reject
from rfdetr_edge.associated import with_document, write_sidecar
from rfdetr_edge.backends import Session, TensorSpec, open_session, proving_providers
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import ArtifactError, BackendError
from rfdetr_edge.files import replacing
from rfdetr_edge.metadata import ModelMetadata
from rfdetr_edge.progress import waiting


def hand_out(
    convert: Callable[[], bytes],
    output: Path,
    metadata: ModelMetadata,
    shapes: dict[str, tuple[int, ...]],
    reference: Session,
    images: Sequence[Path] | None,
) -> dict[str, Comparison]:
    """Writes the artifact and its sidecar, compared with its source on `images`.

    convert: gives the model. metadata: names its converter.
    shapes: of the outputs in order, without the batch.
    reference: the source. images: None skips the comparison, and the metadata says so; the file is
        run once all the same.
    Returns what the gate saw, by provider. Raises ArtifactError when the artifact cannot be opened,
    does not run, or does not find what its source finds: it is then kept as `<output>.rejected` for
    inspection, and `output` is not touched.
    """
    tensors = {"input": (3, *metadata.input.resolution), **shapes}
    wanted = [
        TensorSpec(name, (1, *shape), np.dtype(np.float32)) for name, shape in tensors.items()
    ]
    skipped = replace(metadata.provenance, verification="skipped")
    metadata = replace(metadata, provenance=skipped)
    seen: dict[str, Comparison] = {}
    with replacing(output) as temporary:
        with waiting(f"converting with {metadata.provenance.converter}"):
            model = convert()
        temporary.write_bytes(with_document(model, metadata.to_json()))
        try:
            _check_operators(model)
            for provider in proving_providers(output):
                with (
                    waiting(f"gate on {provider}"),
                    closing(_opened(temporary, provider)) as session,
                ):
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


def _opened(artifact: Path, provider: str | None) -> Session:
    try:
        return open_session(artifact, provider=provider)
    except ArtifactError as error:
        raise _Refused(str(error)) from error


def _check_operators(model: bytes) -> None:
    """Raises _Refused for operators that a plain LiteRT does not have, Flex ones among them."""
    file = schema.Model.GetRootAs(model, 0)
    custom = [file.OperatorCodes(at).CustomCode() for at in range(file.OperatorCodesLength())]
    foreign = sorted(name.decode() for name in custom if name)
    if foreign:
        raise _Refused(f"it needs operators that LiteRT does not have: {', '.join(foreign)}")


def _check_tensors(session: Session, wanted: Sequence[TensorSpec]) -> None:
    """Raises _Refused for inputs and outputs of other names, shapes or order.

    The backend shows an NHWC input as NCHW.
    """
    found = [*session.inputs, *session.outputs]
    if found != [*wanted]:
        listed = [", ".join(map(str, specs)) for specs in (found, wanted)]
        raise _Refused(f"it has {listed[0]} instead of {listed[1]}")


def _compared(reference: Session, session: Session, images: Sequence[Path]) -> Comparison:
    comparison = compare(reference, session, images)
    if not comparison.passed:
        raise _Refused(f"on {session.provider}: {comparison}")
    return comparison
