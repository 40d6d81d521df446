"""Which tensor of an artifact means what, and how the artifact wants to be fed.

The metadata says it where there is some. Files of other exporters have none: their layout of
classes has to be named by the caller, outputs are recognised by name, or by shape where only one
reading is possible. Nothing here runs an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.backends import Session, TensorSpec
from rfdetr_edge.classes import ClassTable, Layout, coco_classes, named_classes
from rfdetr_edge.errors import ArtifactError, InputError, MetadataError
from rfdetr_edge.keypoints import CHANNELS
from rfdetr_edge.metadata import InputSpec, ModelMetadata, Provenance, parse_metadata
from rfdetr_edge.postprocess import RawOutputs
from rfdetr_edge.variants import MASK_STRIDE, Task

COCO_SLOTS = 91

Extra = Literal["masks", "keypoints"]
_TASKS: dict[Extra, Task] = {"masks": "segmentation", "keypoints": "keypoint"}


@dataclass(frozen=True, slots=True)
class Binding:
    """The roles of an artifact's tensors.

    masks_name, keypoints_name: of the task that has them, None otherwise.
    batch: images a run takes, None when any number.
    metadata: the artifact's own, or what could be told about a file without.
    """

    input_name: str
    dets_name: str
    labels_name: str
    masks_name: str | None
    keypoints_name: str | None
    batch: int | None
    metadata: ModelMetadata

    def raw_outputs(self, outputs: Mapping[str, NDArray[Any]]) -> RawOutputs:
        """What a run gave, by role.

        Raises MetadataError for masks of another stride: a graph may leave sizes open till it runs.
        """
        masks = None if self.masks_name is None else outputs[self.masks_name]
        if masks is not None:
            _check_extra(self.metadata, TensorSpec("masks", masks.shape, masks.dtype))
        return RawOutputs(
            outputs[self.dets_name],
            outputs[self.labels_name],
            masks,
            None if self.keypoints_name is None else outputs[self.keypoints_name],
        )


def bind(
    session: Session, class_layout: Layout | None, class_names: Sequence[str] | None
) -> Binding:
    """Binds a session's tensors.

    class_layout: needed without metadata; must be the same where there is some.
    class_names: the foreground classes in order, to rename them.

    Raises ArtifactError when this is no detector, MetadataError when the metadata is malformed or
    contradicts the graph, InputError when layout or names are missing or do not fit.
    """
    image = _image_input(session.inputs)
    dets, labels = _boxes_and_scores(session.outputs)
    extras = _extras(session.outputs, image, dets)
    if session.metadata_json is None:
        metadata = _describe(session, image, labels, extras, class_layout)
    else:
        metadata = parse_metadata(session.metadata_json)
        _check_agreement(metadata, image, labels, class_layout)
    _check_extras(metadata, dets, extras)
    if class_names is not None:
        metadata = replace(metadata, classes=_renamed(metadata.classes, class_names))
    names = {role: spec.name for role, spec in extras.items()}
    return Binding(
        image.name,
        dets.name,
        labels.name,
        names.get("masks"),
        names.get("keypoints"),
        image.shape[0],
        metadata,
    )


def _image_input(inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    image = inputs[0] if len(inputs) == 1 else None
    if (
        image is None
        or len(image.shape) != 4
        or image.shape[1] not in (3, None)
        or image.dtype != np.float32
    ):
        raise ArtifactError(
            f"this is no RF-DETR detector: it takes {_listed(inputs)}; wanted one float32 input "
            "(batch, 3, height, width)"
        )
    return image


def _boxes_and_scores(outputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, TensorSpec]:
    named = {spec.name: spec for spec in outputs}
    problem = "this is no RF-DETR detector"
    if "dets" in named and "labels" in named:
        dets, labels = named["dets"], named["labels"]
        if _may_be(dets, 4) and _may_be(labels, None):
            return dets, labels
    else:
        triples = [spec for spec in outputs if len(spec.shape) == 3 and _may_be(spec, None)]
        boxes = [spec for spec in triples if spec.shape[2] == 4]
        scores = [spec for spec in triples if spec.shape[2] not in (4, None)]
        if len(boxes) == len(scores) == 1 and boxes[0].shape[1] == scores[0].shape[1]:
            return boxes[0], scores[0]
        if len(boxes) == 2 and not scores:
            problem = "boxes and scores cannot be told apart: name the outputs dets and labels"
    raise ArtifactError(
        f"{problem}; it gives {_listed(outputs)}; wanted dets (batch, queries, 4) and labels "
        "(batch, queries, classes)"
    )


def _may_be(spec: TensorSpec, last: int | None) -> bool:
    """Whether it can be floats of (batch, queries, last); ONNX gives () for an unknown rank."""
    if spec.dtype.kind != "f" or len(spec.shape) not in (0, 3):
        return False
    return not spec.shape or last is None or spec.shape[2] in (last, None)


def _extras(
    outputs: tuple[TensorSpec, ...], image: TensorSpec, dets: TensorSpec
) -> dict[Extra, TensorSpec]:
    """Masks and keypoints: by name, else by the shape of an output of the same queries."""
    found: dict[Extra, TensorSpec] = {}
    height, width = image.shape[2:]
    for spec in outputs:
        if spec.name == "masks":
            found["masks"] = spec
        elif spec.name == "keypoints":
            found["keypoints"] = spec
        elif spec.dtype.kind != "f" or len(spec.shape) != 4 or spec.shape[1:2] != dets.shape[1:2]:
            continue
        elif height and width and spec.shape[2:] == (height // MASK_STRIDE, width // MASK_STRIDE):
            found.setdefault("masks", spec)
        elif spec.shape[3] == CHANNELS:
            found.setdefault("keypoints", spec)
    if len(found) == 2:
        raise ArtifactError(
            f"an artifact gives masks or keypoints, this one gives both: {_listed(outputs)}"
        )
    return found


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs)) or "nothing"


def _describe(
    session: Session,
    image: TensorSpec,
    labels: TensorSpec,
    extras: Mapping[Extra, TensorSpec],
    layout: Layout | None,
) -> ModelMetadata:
    """What can be told of a file without metadata, as upstream writes it.

    Mean and std are ImageNet's and the resize is antialiased: published accuracy was measured so.
    Every query can give a detection. Which class has which keypoints cannot be told.
    """
    if "keypoints" in extras:
        raise ArtifactError(
            "missing keypoint metadata: the artifact gives keypoints, and nothing says which "
            "points each class has; export it again with rfdetr-edge"
        )
    height, width = image.shape[2:]
    if height is None or width is None:
        raise ArtifactError(
            f"the artifact has no rfdetr-edge metadata and leaves its resolution open ({image}); "
            "export it with a fixed height and width"
        )
    queries, slots = _queries_and_slots(session, image, labels)
    if layout is None:
        raise InputError(
            f"the artifact has no rfdetr-edge metadata, so say what its {slots} class slots mean "
            "by class_layout (--class-layout): coco for published COCO checkpoints, "
            "background-last for fine-tuned ones, background-first for legacy keypoint ones, "
            "contiguous for a head without background"
        )
    return ModelMetadata(
        task="segmentation" if "masks" in extras else "detection",
        variant="unknown",
        precision="fp32",
        input=InputSpec((height, width), antialias=True),
        classes=_default_classes(layout, slots),
        num_select=queries,
        provenance=Provenance("unknown", "unknown", "skipped"),
        mask_stride=MASK_STRIDE if "masks" in extras else None,
    )


def _queries_and_slots(session: Session, image: TensorSpec, labels: TensorSpec) -> tuple[int, int]:
    _, queries, slots = labels.shape or (None, None, None)
    if queries is None or slots is None:  # left open by some exporters: a run tells
        zeros = np.zeros([size or 1 for size in image.shape], np.float32)
        scores = session.run({image.name: zeros})[labels.name]
        if scores.ndim != 3:
            raise ArtifactError(f"this is no RF-DETR detector: {labels.name} is {scores.shape}")
        queries, slots = scores.shape[1:]
    return queries, slots


def _default_classes(layout: Layout, slots: int) -> ClassTable:
    """The table of a layout; classes without a name are called after their slot."""
    if layout == "coco":
        if slots != COCO_SLOTS:
            raise InputError(
                f"class_layout coco has {COCO_SLOTS} slots, but the artifact has {slots}; "
                "fine-tuned checkpoints are background-last"
            )
        return coco_classes()
    first = 1 if layout == "background-first" else 0
    last = slots - 1 if layout == "background-last" else slots
    return named_classes(layout, [f"class {slot}" for slot in range(first, last)])


def _check_agreement(
    metadata: ModelMetadata, image: TensorSpec, labels: TensorSpec, layout: Layout | None
) -> None:
    resolution = metadata.input.resolution
    graph = image.shape[2:]
    if any(size not in (None, side) for size, side in zip(graph, resolution, strict=True)):
        raise MetadataError(
            f"the metadata says resolution {resolution}, the graph takes {image}; export it again"
        )
    slots = labels.shape[2] if labels.shape else None
    if slots not in (None, len(metadata.classes)):
        raise MetadataError(
            f"the metadata lists {len(metadata.classes)} class slots, the graph scores {slots}; "
            "export it again"
        )
    if layout not in (None, metadata.classes.layout):
        raise InputError(
            f"class_layout {layout!r} contradicts the artifact, whose metadata says "
            f"{metadata.classes.layout!r}; leave it out"
        )


def _check_extras(
    metadata: ModelMetadata, dets: TensorSpec, extras: Mapping[Extra, TensorSpec]
) -> None:
    """The output that the task wants is there, no other is, and its sizes are right."""
    for role, task in _TASKS.items():
        if (role in extras) != (metadata.task == task):
            gives = f"gives {extras[role]}" if role in extras else f"gives no {role}"
            raise MetadataError(
                f"the metadata says task {metadata.task}, but the graph {gives}; export it again"
            )
    for spec in extras.values():
        _check_extra(metadata, spec, dets.shape[:2] or (None, None))


def _check_extra(
    metadata: ModelMetadata, spec: TensorSpec, rows: tuple[int | None, ...] = (None, None)
) -> None:
    """The sizes of masks or keypoints. rows: batch and queries, where they are known."""
    height, width = metadata.input.resolution
    sizes: tuple[int, ...] = ()
    if metadata.mask_stride is not None:
        sizes = (height // metadata.mask_stride, width // metadata.mask_stride)
        reason = f"mask stride {metadata.mask_stride} at resolution {height}x{width}"
    if metadata.keypoints is not None:
        sizes = (len(metadata.keypoints.classes) * metadata.keypoints.widest, CHANNELS)
        reason = f"{metadata.keypoints.counts} keypoints a class"
    if spec.dtype.kind != "f" or not _fits(spec.shape, (*rows, *sizes)):
        raise MetadataError(
            f"{reason} means floats of (batch, queries, {sizes[0]}, {sizes[1]}), but the graph "
            f"gives {spec}; export it again"
        )


def _fits(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether open sizes, and an unknown rank, leave room for equality."""
    return not shape or (
        len(shape) == len(wanted)
        and all(None in pair or pair[0] == pair[1] for pair in zip(shape, wanted, strict=True))
    )


def _renamed(table: ClassTable, class_names: Sequence[str]) -> ClassTable:
    if isinstance(class_names, str):
        raise InputError(f"class_names must be a list of names, not the text {class_names!r}")
    slots = [slot for slot, known in enumerate(table.category_ids) if known is not None]
    if len(class_names) != len(slots):
        raise InputError(
            f"got {len(class_names)} class_names, but the artifact has {len(slots)} classes "
            f"(layout {table.layout})"
        )
    names = list(table.names)
    for slot, name in zip(slots, class_names, strict=True):
        names[slot] = name
    return replace(table, names=tuple(names))
