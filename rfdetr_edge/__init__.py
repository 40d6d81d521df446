"""RF-DETR on the device: detections from an exported artifact, without torch.

    from rfdetr_edge import Detector

    with Detector("model.onnx") as detector:
        detections = detector.predict("photo.jpg", threshold=0.5)

Importing this loads NumPy alone; OpenCV and the executors load on first use.
"""

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailable,
    InputError,
    MetadataError,
    RFDETREdgeError,
)
from rfdetr_edge.images import Url
from rfdetr_edge.keypoint_schema import ClassKeypoints, KeypointSchema
from rfdetr_edge.masks import Masks
from rfdetr_edge.metadata import ModelMetadata

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "BackendError",
    "BackendUnavailable",
    "ClassKeypoints",
    "ClassTable",
    "Detections",
    "Detector",
    "InputError",
    "KeypointSchema",
    "Masks",
    "MetadataError",
    "ModelMetadata",
    "RFDETREdgeError",
    "Url",
    "__version__",
]
