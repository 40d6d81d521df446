"""How raw outputs become Detections: sigmoid, best pairs of query and class, pixel boxes.

The only home of this rule: the runtime, the trainer's validation and the export gate call it.
A query may be reported several times with different classes, there is no NMS, and every slot takes
part in the ranking, background included.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import ArtifactError

Float32 = NDArray[np.float32]


def postprocess(
    dets: Float32,
    labels: Float32,
    *,
    source_sizes: Sequence[tuple[int, int]],
    classes: ClassTable,
    num_select: int,
    threshold: float,
) -> list[Detections]:
    """The detections of a batch, one Detections an image, highest confidence first.

    dets: (B, Q, 4) cxcywh, relative to the image; values outside 0-1 are clamped to the image.
    labels: (B, Q, C) logits; C is the number of slots of `classes`.
    source_sizes: (height, width) of each source image in pixels.
    num_select: pairs of query and class that are ranked, at most Q * C.
    threshold: keeps confidences strictly above it; any negative number keeps every ranked pair.
        A NaN confidence is ranked first and never kept.

    Raises ArtifactError when the outputs are no detector's or the class table has another size.
    """
    _check_outputs(dets, labels, classes)
    results = []
    # a logit below -88 overflows in exp, and the sigmoid is 0 as it should be; an infinite box
    # makes a NaN corner
    with np.errstate(over="ignore", invalid="ignore"):
        confidences = 1.0 / (1.0 + np.exp(-labels.astype(np.float32, copy=False)))  # (B, Q, C)
        for cxcywh, confidence, size in zip(dets, confidences, source_sizes, strict=True):
            best = best_pairs(confidence.ravel(), num_select)
            best = best[confidence.flat[best] > threshold]
            query, slot = np.divmod(best, len(classes))
            results.append(
                Detections(
                    xyxy=_pixel_boxes(cxcywh[query], size),
                    confidence=confidence.flat[best],
                    class_id=slot.astype(np.int64),
                    classes=classes,
                    source_size=size,
                )
            )
    return results


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


def _check_outputs(dets: Float32, labels: Float32, classes: ClassTable) -> None:
    if dets.ndim != 3 or labels.ndim != 3 or dets.shape != (*labels.shape[:2], 4):
        raise ArtifactError(
            f"the outputs dets {dets.shape} and labels {labels.shape} are no detector's; wanted "
            "(batch, queries, 4) and (batch, queries, classes)"
        )
    if labels.shape[2] != len(classes):
        raise ArtifactError(
            f"the artifact scores {labels.shape[2]} class slots, but the class table has "
            f"{len(classes)}; name the right ones with --class-layout and --classes"
        )
