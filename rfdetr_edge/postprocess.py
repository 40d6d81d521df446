"""How raw outputs become Detections: sigmoid, best pairs of query and class, pixel boxes.

The only home of this rule: the runtime, the trainer's validation and the export gate call it.
A query may be reported several times with different classes, there is no NMS, and every slot takes
part in the ranking, background included. Masks and keypoints follow the rows that are kept.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.keypoint_schema import KeypointSchema
from rfdetr_edge.keypoints import CHANNELS, raw_points
from rfdetr_edge.masks import Masks

Float32 = NDArray[np.float32]


class RawOutputs(NamedTuple):
    """What the network gives for a batch, in any float dtype.

    dets: (B, Q, 4) cxcywh, relative to the image; values outside 0-1 are clamped to the image.
    labels: (B, Q, C) logits; C is the number of class slots.
    masks: (B, Q, h, w) logits on the mask grid, of segmentation.
    keypoints: (B, Q, classes of the schema * widest, 8), of keypoints; see `keypoint_schema`.
    """

    dets: NDArray[Any]
    labels: NDArray[Any]
    masks: NDArray[Any] | None = None
    keypoints: NDArray[Any] | None = None

    def of(self, images: int | slice) -> "RawOutputs":
        """Of one image, without the dimension of the batch, or of several."""
        dets, labels, masks, keypoints = self
        return RawOutputs(
            dets[images],
            labels[images],
            None if masks is None else masks[images],
            None if keypoints is None else keypoints[images],
        )

    def are_numbers(self) -> bool:
        """Whether places are finite, and logits and uncertainties, which may be extreme, no NaN."""
        points = () if self.keypoints is None else (self.keypoints[..., :2],)
        logits = [part for part in (self.labels, self.masks, self.keypoints) if part is not None]
        finite = all(np.isfinite(part).all() for part in (self.dets, *points))
        return finite and not any(np.isnan(part).any() for part in logits)


def postprocess(
    outputs: RawOutputs,
    *,
    source_sizes: Sequence[tuple[int, int]],
    classes: ClassTable,
    num_select: int,
    threshold: float,
    schema: KeypointSchema | None = None,
) -> list[Detections]:
    """The detections of a batch, one Detections an image, highest class score first.

    The score is the confidence, except with keypoints: their uncertainty lowers it, and the order
    stays that of the score.

    source_sizes: (height, width) of each source image in pixels.
    num_select: pairs of query and class that are ranked, at most Q * C.
    threshold: keeps confidences strictly above it; any negative number keeps every ranked pair.
        A NaN confidence is ranked first and never kept.
    schema: what the keypoints mean; with keypoints alone.

    Raises ArtifactError when the outputs are no detector's, contradict each other or the schema,
    or score other classes than the table has.
    """
    _check_outputs(outputs, classes)
    _check_extras(outputs, classes, schema)
    # a logit below -88 overflows in exp, and the sigmoid is 0 as it should be; an infinite box
    # makes a NaN corner
    with np.errstate(over="ignore", invalid="ignore"):
        confidences = 1.0 / (1.0 + np.exp(-outputs.labels.astype(np.float32, copy=False)))
        results = []
        for image, (confidence, size) in enumerate(zip(confidences, source_sizes, strict=True)):
            best = best_pairs(confidence.ravel(), num_select)  # of (Q, C)
            rows = _Rows(confidence.flat[best], *np.divmod(best, len(classes)))
            results.append(_detections(outputs.of(image), rows, size, classes, threshold, schema))
    return results


class _Rows(NamedTuple):
    """The ranked pairs of one image, (N,) each."""

    confidence: Float32
    query: NDArray[np.intp]
    slot: NDArray[np.intp]


def _detections(
    one: RawOutputs,
    rows: _Rows,
    size: tuple[int, int],
    classes: ClassTable,
    threshold: float,
    schema: KeypointSchema | None,
) -> Detections:
    """one: the outputs of one image, without the batch."""
    confidence, points = rows.confidence, None
    if schema is not None and one.keypoints is not None:
        points = raw_points(one.keypoints, rows.query, rows.slot, schema)
        confidence = points.fused(confidence, schema.trace_alpha)
    kept = confidence > threshold
    query = rows.query[kept]
    masks = None
    if one.masks is not None:  # a copy, so that the whole output can go
        masks = Masks(one.masks[query].astype(np.float32, copy=False), size)
    return Detections(
        xyxy=_pixel_boxes(one.dets[query], size),
        confidence=confidence[kept],
        class_id=rows.slot[kept].astype(np.int64),
        classes=classes,
        source_size=size,
        masks=masks,
        schema=schema,
        **(points.decoded(kept, size)._asdict() if points else {}),
    )


def best_pairs(confidence: Float32, count: int) -> NDArray[np.intp]:
    """Positions of the `count` highest values of (N,), or of all when there are fewer.

    Descending; NaN first; ties by ascending position. Equal to the head of a stable sort of all
    values, which is what the reference does, but only sorts those that can get in.
    """
    key = np.where(np.isnan(confidence), -np.inf, -confidence)
    if count >= len(key):
        return np.argsort(key, kind="stable")
    last = np.partition(key, count - 1)[count - 1]
    candidates = np.flatnonzero(key <= last)  # every tie with the last one, in position order
    return candidates[np.argsort(key[candidates], kind="stable")[:count]]


def _pixel_boxes(cxcywh: Float32, size: tuple[int, int]) -> Float32:
    """(N, 4) relative cxcywh -> (N, 4) xyxy in pixels, within an image of (height, width)."""
    boxes = cxcywh.astype(np.float32, copy=False)
    half = 0.5 * np.maximum(boxes[:, 2:], 0.0)
    corners = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(corners * limits, 0.0, limits)


def _check_outputs(outputs: RawOutputs, classes: ClassTable) -> None:
    dets, labels = outputs.dets.shape, outputs.labels.shape
    if len(dets) != 3 or len(labels) != 3 or dets != (*labels[:2], 4):
        raise ArtifactError(
            f"the outputs dets {dets} and labels {labels} are no detector's; wanted "
            "(batch, queries, 4) and (batch, queries, classes)"
        )
    if labels[2] != len(classes):
        raise ArtifactError(
            f"the artifact scores {labels[2]} class slots, but the class table has "
            f"{len(classes)}; name the right ones with --class-layout and --classes"
        )


def _check_extras(outputs: RawOutputs, classes: ClassTable, schema: KeypointSchema | None) -> None:
    masks, keypoints = outputs.masks, outputs.keypoints
    rows = outputs.dets.shape[:2]
    if masks is not None and keypoints is not None:
        raise ArtifactError("an artifact gives masks or keypoints; this one gives both")
    if masks is not None and (masks.ndim != 4 or masks.shape[:2] != rows):
        raise ArtifactError(
            f"the output masks {masks.shape} does not go with {rows[1]} queries of a batch of "
            f"{rows[0]}; wanted (batch, queries, height, width)"
        )
    if (keypoints is None) != (schema is None):
        raise ArtifactError(
            "the artifact gives no keypoints, but its metadata lists some; export it again"
            if keypoints is None
            else "missing keypoint metadata: the artifact gives keypoints, and nothing says which "
            "points each class has; export it again with rfdetr-edge"
        )
    if keypoints is None or schema is None:
        return
    wanted = (*rows, len(schema.classes) * schema.widest, CHANNELS)
    if keypoints.shape != wanted:
        raise ArtifactError(
            f"the output keypoints {keypoints.shape} does not fit a schema of {schema.counts} "
            f"points a class; wanted {wanted}"
        )
    if len(schema.classes) > len(classes):
        raise ArtifactError(
            f"the keypoint schema has {len(schema.classes)} classes, the artifact scores "
            f"{len(classes)}; export it again"
        )
