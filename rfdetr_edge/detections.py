"""Detections: what one image gave, as arrays of one length. Knows nothing of models or files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge import _optional
from rfdetr_edge.classes import ClassTable
from rfdetr_edge.errors import InputError

Rows = int | slice | Sequence[int] | NDArray[np.bool_] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The detections of one image, highest confidence first.

    xyxy: (N, 4) float32, corner boxes in pixels of the source image, within it.
    confidence: (N,) float32, 0 to 1.
    class_id: (N,) int64, the slot number: a row of `classes`.
    classes: what the slots mean.
    source_size: (height, width) of the source image in pixels.

    `len(d)` counts rows, `d[mask]`, `d[2:5]` and `d[0]` select rows, iterating gives one row at a
    time, each again as Detections. Raises InputError for arrays of another shape or dtype, and for
    a class_id outside the table.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    classes: ClassTable
    source_size: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.xyxy)
        for name, array, shape, dtype in (
            ("xyxy", self.xyxy, (count, 4), np.float32),
            ("confidence", self.confidence, (count,), np.float32),
            ("class_id", self.class_id, (count,), np.int64),
        ):
            if array.shape != shape or array.dtype != dtype:
                raise InputError(
                    f"Detections.{name} must have shape {shape} and dtype {np.dtype(dtype)}, "
                    f"not {array.shape} and {array.dtype}"
                )
        if count and not 0 <= self.class_id.min() <= self.class_id.max() < len(self.classes):
            raise InputError(
                f"Detections.class_id must be slots, here 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, rows: Rows) -> "Detections":
        index: Any = [rows] if isinstance(rows, int | np.integer) else rows
        return replace(
            self,
            xyxy=self.xyxy[index],
            confidence=self.confidence[index],
            class_id=self.class_id[index],
        )

    @property
    def class_name(self) -> NDArray[np.object_]:
        """(N,) objects of type str, so that `d[d.class_name == "car"]` works.

        The background slot is named `__background__`, a slot without a class "".
        """
        return np.array(self.classes.names, dtype=object)[self.class_id]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON.

        `{"width", "height", "detections": [{"xyxy", "confidence", "class_id", "class_name"}, ...]}`
        """
        height, width = self.source_size
        columns = (
            self.xyxy.tolist(),
            self.confidence.tolist(),
            self.class_id.tolist(),
            self.class_name.tolist(),
        )
        return {
            "width": width,
            "height": height,
            "detections": [
                {"xyxy": xyxy, "confidence": confidence, "class_id": slot, "class_name": name}
                for xyxy, confidence, slot, name in zip(*columns, strict=True)
            ],
        }

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Rows of a COCO results file: image_id, category_id, bbox [x, y, width, height], score.

        category_id is the data set's own id. Rows of slots that have none, background and unnamed
        ones, cannot be written in COCO and are left out.
        """
        corners = self.xyxy.astype(np.float64)
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        columns = (self.class_id.tolist(), xywh.tolist(), self.confidence.tolist())
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
            for slot, bbox, score in zip(*columns, strict=True)
            if (category_id := self.classes.category_ids[slot]) is not None
        ]

    def to_supervision(self) -> Any:
        """The same rows as `supervision.Detections`, as upstream's `predict` returns them.

        data["class_name"]: (N,) objects; data["source_shape"]: (N, 2) int64 (height, width).
        Raises BackendUnavailable without the `supervision` extra.
        """
        return _optional.supervision().Detections(
            xyxy=self.xyxy,
            confidence=self.confidence,
            class_id=self.class_id,
            data={
                "class_name": self.class_name,
                "source_shape": np.tile(np.array(self.source_size, dtype=np.int64), (len(self), 1)),
            },
        )
