"""What an artifact says about itself: one JSON document that travels inside the file.

The exporters write it, the runtime reads it and never guesses from shapes. In ONNX it is the
`metadata_props` entry `rfdetr_edge`; in TFLite an associated file (`rfdetr_edge.associated`); of a
TensorRT engine it is in the record beside it (`rfdetr_edge.engine_record`).

    {"schema": 1, "task": "detection", "variant": "tiny", "precision": "fp32",
     "input": {"resolution": [384, 384], "mean": [...], "std": [...], "channel_order": "RGB",
               "resize": "bilinear-half-pixel", "antialias": true},
     "classes": {"layout": "background-last",
                 "slots": [{"id": 0, "name": "RBC", "category_id": 1}, ...]},
     "num_select": 100,
     "provenance": {"checkpoint_sha256": "...", "tool": "rfdetr-edge 0.1.0",
                    "verification": "passed", "notes": null}}

The provenance of `int8` adds the images that its scales come from:

     "calibration": {"images": 64, "sha256": "..."}

and that of an artifact which another program converted, which one:

     "converter": "litert-torch 0.10.0"

The task "segmentation" adds the pixels of the input for one cell of a mask, the task "keypoint"
the points of each class slot from 0:

     "mask_stride": 4
     "keypoints": {"trace_alpha": 0.2,
                   "classes": [{"names": ["left_end", "right_end"], "skeleton": [[0, 1]],
                                "sigmas": [0.05, 0.05], "flip_pairs": [[0, 1]]}, ...]}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from rfdetr_edge.classes import LAYOUTS, ClassTable, Layout
from rfdetr_edge.errors import InputError, MetadataError
from rfdetr_edge.keypoint_schema import KeypointSchema, parse_schema
from rfdetr_edge.variants import Task

SCHEMA = 1
METADATA_KEY = "rfdetr_edge"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZE = "bilinear-half-pixel"

Uncalibrated = Literal["int8-dynamic", "int8-weight-only"]
"""INT8 that needs no images to fix scales."""
Precision = Literal["fp32", "fp16", "int8", Uncalibrated]
"""What the matrix products and convolutions of an artifact work with.

int8 rounds activations by scales that images fixed, int8-dynamic by what each run finds,
int8-weight-only not at all.
"""
Verification = Literal["passed", "skipped"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an RGB uint8 image becomes the input tensor.

    resolution: (height, width) in pixels; the image is squashed to it, aspect ratio not kept.
    mean, std: per channel, applied to values in 0-1.
    antialias: triangle filter widened by the scale when shrinking (the resize of training loaders)
        or plain two-tap bilinear (the resize of upstream's `predict`).
    """

    resolution: tuple[int, int]
    antialias: bool
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True, slots=True)
class Calibration:
    """The images that fixed the scales of an `int8` artifact: how many, and what they were.

    sha256: of their pixels in order, as exporters.calibration makes it.
    """

    images: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an artifact comes from and whether its export was compared with its reference.

    notes: any JSON value, as given by the user. calibration: of `int8`, None otherwise.
    converter: the program and version that made the FP32 graph, None where it was PyTorch itself.
    """

    checkpoint_sha256: str
    tool: str
    verification: Verification
    notes: Any = None
    calibration: Calibration | None = None
    converter: str | None = None


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The whole document.

    num_select: pairs of query and class that survive before the threshold.
    mask_stride: of segmentation, pixels of the input for one cell of a mask; None otherwise.
    keypoints: of the keypoint task, the points of each class; None otherwise.
    Raises MetadataError when the task lacks one of these two, or has one that it must not have,
    and for keypoints of more classes than there are slots.
    """

    task: Task
    variant: str
    precision: Precision
    input: InputSpec
    classes: ClassTable
    num_select: int
    provenance: Provenance
    mask_stride: int | None = None
    keypoints: KeypointSchema | None = None

    def __post_init__(self) -> None:
        for field, given, owner in (
            ("mask_stride", self.mask_stride is not None, "segmentation"),
            ("keypoints", self.keypoints is not None, "keypoint"),
        ):
            if given != (self.task == owner):
                wrong = "has no place in" if given else "is missing in"
                raise MetadataError(
                    f"metadata field {field!r} {wrong} an artifact of the task {self.task}; "
                    "export it again"
                )
        if self.keypoints is not None and len(self.keypoints.classes) > len(self.classes):
            raise MetadataError(
                f"metadata field 'keypoints' lists {len(self.keypoints.classes)} classes, but "
                f"there are {len(self.classes)} class slots; export the artifact again"
            )

    def to_json(self) -> str:
        """The document as JSON text."""
        table = zip(self.classes.names, self.classes.category_ids, strict=True)
        extra: dict[str, Any] = {}
        if self.mask_stride is not None:
            extra["mask_stride"] = self.mask_stride
        if self.keypoints is not None:
            extra["keypoints"] = self.keypoints.to_dict()
        calibration = self.provenance.calibration
        origin: dict[str, Any] = {}
        if calibration is not None:
            origin["calibration"] = asdict(calibration)
        if self.provenance.converter is not None:
            origin["converter"] = self.provenance.converter
        return json.dumps(
            {
                "schema": SCHEMA,
                "task": self.task,
                "variant": self.variant,
                "precision": self.precision,
                "input": {
                    "resolution": list(self.input.resolution),
                    "mean": list(self.input.mean),
                    "std": list(self.input.std),
                    "channel_order": "RGB",
                    "resize": RESIZE,
                    "antialias": self.input.antialias,
                },
                "classes": {
                    "layout": self.classes.layout,
                    "slots": [
                        {"id": slot, "name": name, "category_id": category_id}
                        for slot, (name, category_id) in enumerate(table)
                    ],
                },
                "num_select": self.num_select,
                **extra,
                "provenance": {
                    "checkpoint_sha256": self.provenance.checkpoint_sha256,
                    "tool": self.provenance.tool,
                    "verification": self.provenance.verification,
                    "notes": self.provenance.notes,
                    **origin,
                },
            },
            allow_nan=False,
        )


def parse_metadata(text: str) -> ModelMetadata:
    """Reads and checks the document.

    Raises MetadataError that names the field when one is absent, of the wrong type, or out of
    range, and when the schema is newer than this version reads.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise MetadataError(
            f"the metadata is no JSON ({error}); export the artifact again"
        ) from None
    if not isinstance(document, dict):
        raise MetadataError("the metadata is no JSON object; export the artifact again")
    schema = _field(document, "schema", int)
    if schema > SCHEMA:
        raise MetadataError(
            f"the artifact's metadata has schema {schema}, this rfdetr-edge reads up to {SCHEMA}; "
            "update rfdetr-edge, or export the artifact with this version"
        )
    source = _field(document, "input", dict)
    classes = _field(document, "classes", dict)
    provenance = _field(document, "provenance", dict)
    return ModelMetadata(
        task=_choice(document, "task", get_args(Task)),
        variant=_field(document, "variant", str),
        precision=_choice(document, "precision", get_args(Precision)),
        input=_input_spec(source),
        classes=_class_table(classes),
        num_select=_positive(document, "num_select"),
        provenance=Provenance(
            checkpoint_sha256=_field(provenance, "checkpoint_sha256", str),
            tool=_field(provenance, "tool", str),
            verification=_choice(provenance, "verification", ("passed", "skipped")),
            notes=provenance.get("notes"),
            calibration=_calibration(provenance),
            converter=_field(provenance, "converter", str) if "converter" in provenance else None,
        ),
        mask_stride=_positive(document, "mask_stride") if "mask_stride" in document else None,
        keypoints=_keypoints(document["keypoints"]) if "keypoints" in document else None,
    )


def _calibration(provenance: Mapping[str, Any]) -> Calibration | None:
    if "calibration" not in provenance:
        return None
    source = _field(provenance, "calibration", dict)
    return Calibration(_positive(source, "images"), _field(source, "sha256", str))


def _input_spec(source: Mapping[str, Any]) -> InputSpec:
    _choice(source, "channel_order", ("RGB",))
    _choice(source, "resize", (RESIZE,))
    resolution = _field(source, "resolution", list)
    if len(resolution) != 2 or not all(type(side) is int and side > 0 for side in resolution):
        raise MetadataError(
            f"metadata field 'resolution' must be [height, width] in pixels, not {resolution}"
        )
    return InputSpec(
        resolution=(resolution[0], resolution[1]),
        antialias=_field(source, "antialias", bool),
        mean=_triple(source, "mean"),
        std=_triple(source, "std"),
    )


def _class_table(classes: Mapping[str, Any]) -> ClassTable:
    layout = cast(Layout, _choice(classes, "layout", LAYOUTS))
    slots = _field(classes, "slots", list)
    names, category_ids = [], []
    for index, slot in enumerate(slots):
        if not isinstance(slot, dict) or slot.get("id") != index:
            raise MetadataError(
                f"metadata field 'slots' must list ids 0, 1, 2, ...: got {slot} at {index}"
            )
        names.append(_field(slot, "name", str))
        category_id = slot.get("category_id")
        if category_id is not None and type(category_id) is not int:
            raise MetadataError(
                f"metadata field 'category_id' of slot {index} must be an integer or null"
            )
        category_ids.append(category_id)
    if not names:
        raise MetadataError("metadata field 'slots' is empty: a detector has at least one class")
    return ClassTable(layout, tuple(names), tuple(category_ids))


def _keypoints(schema: Any) -> KeypointSchema:
    try:
        return parse_schema(schema)
    except InputError as error:
        raise MetadataError(
            f"metadata field 'keypoints': {error}; export the artifact again"
        ) from None


def _field(source: Mapping[str, Any], name: str, kind: type) -> Any:
    value = source.get(name)
    # bool is an int to Python, never in this document
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise MetadataError(
            f"metadata field {name!r} must be of type {kind.__name__}, not {value!r}; "
            "export the artifact again"
        )
    return value


def _choice(source: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> Any:
    value = _field(source, name, str)
    if value not in allowed:
        raise MetadataError(
            f"metadata field {name!r} is {value!r}; this version knows {', '.join(allowed)}"
        )
    return value


def _positive(source: Mapping[str, Any], name: str) -> int:
    value: int = _field(source, name, int)
    if value < 1:
        raise MetadataError(f"metadata field {name!r} must be at least 1, not {value}")
    return value


def _triple(source: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = _field(source, name, list)
    if len(values) != 3 or not all(type(value) in (int, float) for value in values):
        raise MetadataError(f"metadata field {name!r} must hold three numbers, not {values}")
    if name == "std" and min(values) <= 0:
        raise MetadataError(f"metadata field 'std' must be positive, not {values}")
    return float(values[0]), float(values[1]), float(values[2])
