"""The ONNX file that an engine is built of: read, and looked at before TensorRT sees it."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from exporters.calibration import calibration_set
from exporters.inspection import inspected
from exporters.trt.preflight import preflight
from exporters.verify import gate_images
from rfdetr_edge.errors import ArtifactError, BackendUnavailable
from rfdetr_edge.metadata import METADATA_KEY, ModelMetadata, Precision, parse_metadata

# Images that a graph in half precision is run on, to see what overflows.
_MOST_IMAGES = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """An ONNX file to build an engine of.

    metadata: None for one that is not ours. precision: what its graph holds, whatever it says.
    image: name and shape of its first input, -1 where that is open.
    """

    path: Path
    model: onnx.ModelProto
    metadata: ModelMetadata | None
    precision: Precision

    @property
    def image(self) -> tuple[str, tuple[int, ...]]:
        """As TensorRT will have it."""
        value = self.model.graph.input[0]
        sizes = value.type.tensor_type.shape.dim
        return value.name, tuple(size.dim_value or -1 for size in sizes)

    @property
    def batch(self) -> int:
        """Images of one run, -1 where any number will do."""
        _, shape = self.image
        return shape[0] if shape else -1


def read_source(path: Path) -> Source:
    """Raises ArtifactError for a file that is no ONNX, MetadataError for damaged metadata."""
    try:
        model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read as ONNX ({error}); export or copy it again"
        ) from None
    if not model.graph.node or not model.graph.input:
        raise ArtifactError(f"{path} is no ONNX file with a network in it; export or copy it again")
    props = {prop.key: prop.value for prop in model.metadata_props}
    metadata = parse_metadata(props[METADATA_KEY]) if METADATA_KEY in props else None
    return Source(path, model, metadata, inspected(model).precision)


def look(
    source: Source, precision: Precision, images: Path | None = None, *, verified: bool = True
) -> None:
    """Raises ArtifactError where no engine of this precision should be built; logs the rest.

    images: a folder of images to look for overflows on, None for the embedded photos.
    verified: run half precision on them. Raises BackendUnavailable where ONNX Runtime, which does
        that, is not installed.
    """
    run = verified and precision == "fp16" and source.metadata is not None
    if run:
        check_reference()
    findings = preflight(source.model, precision, _tensors(source, images) if run else ())
    errors = [finding.text for finding in findings if finding.is_error]
    said = source.metadata.precision if source.metadata else precision
    if said != source.precision:
        errors.append(f"its metadata says {said}, its graph holds {source.precision}")
    if errors:
        raise ArtifactError(
            "\n  ".join([f"no {precision} engine can be built of {source.path}:", *errors])
        )
    for finding in findings:
        logger.warning("%s: %s", source.path, finding.text)


def check_reference() -> None:
    """Raises BackendUnavailable without ONNX Runtime, which runs what is compared with."""
    if find_spec("onnxruntime") is None:
        raise BackendUnavailable(
            "the ONNX file is run by ONNX Runtime, which is not installed: pip install "
            "onnxruntime (--no-deps on a Jetson, which keeps JetPack's NumPy), or say --no-verify "
            "for an engine that was compared with nothing"
        )


def _tensors(source: Source, images: Path | None) -> Iterator[NDArray[np.float32]]:
    """Images as the artifact takes them; none for one that does not say how."""
    if source.metadata is not None:
        chosen = gate_images(images, source.metadata.task)
        spec = source.metadata.input
        yield from islice(calibration_set(chosen).tensors(spec), _MOST_IMAGES)
