"""Detections: what one image gave, as arrays of one length. Knows nothing of models or files."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge import _optional
from rfdetr_edge.classes import ClassTable
from rfdetr_edge.errors import InputError
from rfdetr_edge.keypoint_schema import KeypointSchema
from rfdetr_edge.masks import Masks, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The detections of one image, highest confidence first.

    With keypoints it is the class score that is sorted by; the confidence is that score lowered by
    the uncertainty of the points.

    xyxy: (N, 4) float32, corner boxes in pixels of the source image, within it.
    confidence: (N,) float32, 0 to 1.
    class_id: (N,) int64, the slot number: a row of `classes`.
    classes: what the slots mean.
    source_size: (height, width) of the source image in pixels.

    Of segmentation, None otherwise:
    masks: N masks of the source image, not cut to the boxes. `mask` gives them as one array.

    Of keypoints, None otherwise; K is the most points a class has, `keypoint_count` how many of
    the K columns a row's class has, and the columns after hold x = y = confidence = 0 and NaN:
    schema: what the points of each class are.
    keypoints: (N, K, 2) float32, x and y in pixels, which may lie outside the image.
    keypoint_confidence: (N, K) float32, 0 to 1: that the point can be found.
    keypoint_precision: (N, K, 3) float32 log l11, l21, log l22: the inverse covariance L L^T,
        relative to the image, as the network gives it.
    covariance: (N, K, 2, 2) float32 pixels squared, NaN where it is no finite number. Relative:
        times the box's share of the image it is the expected square of the error.

    `len(d)` counts rows, `d[mask]`, `d[2:5]` and `d[0]` select rows, iterating gives one row at a
    time, each again as Detections. Raises InputError for arrays of another shape or dtype, for a
    class_id outside the table, and for keypoints of which some arrays are missing.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    classes: ClassTable
    source_size: tuple[int, int]
    masks: Masks | None = None
    schema: KeypointSchema | None = None
    keypoints: NDArray[np.float32] | None = None
    keypoint_confidence: NDArray[np.float32] | None = None
    keypoint_precision: NDArray[np.float32] | None = None
    covariance: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        count = len(self.xyxy)
        _check("xyxy", self.xyxy, (count, 4), np.float32)
        _check("confidence", self.confidence, (count,), np.float32)
        _check("class_id", self.class_id, (count,), np.int64)
        if count and not 0 <= self.class_id.min() <= self.class_id.max() < len(self.classes):
            raise InputError(
                f"Detections.class_id must be slots, here 0 to {len(self.classes) - 1}"
            )
        if self.masks is not None and (
            len(self.masks) != count or self.masks.source_size != self.source_size
        ):
            raise InputError(
                f"Detections.masks must be {count} masks of {self.source_size} pixels, not "
                f"{len(self.masks)} of {self.masks.source_size}"
            )
        self._check_keypoints()

    def _check_keypoints(self) -> None:
        widest = 0 if self.schema is None else self.schema.widest
        shapes = {
            "keypoints": (self.keypoints, (2,)),
            "keypoint_confidence": (self.keypoint_confidence, ()),
            "keypoint_precision": (self.keypoint_precision, (3,)),
            "covariance": (self.covariance, (2, 2)),
        }
        for name, (array, last) in shapes.items():
            if (array is None) != (self.schema is None):
                raise InputError(
                    f"Detections needs schema, {', '.join(shapes)} all together or none of them; "
                    f"{name} and schema differ"
                )
            if array is not None:
                _check(name, array, (len(self), widest, *last), np.float32)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, rows: Rows) -> "Detections":
        index: Any = [rows] if isinstance(rows, int | np.integer) else rows

        def selected(array: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            return None if array is None else array[index]

        return replace(
            self,
            xyxy=self.xyxy[index],
            confidence=self.confidence[index],
            class_id=self.class_id[index],
            masks=None if self.masks is None else self.masks[index],
            keypoints=selected(self.keypoints),
            keypoint_confidence=selected(self.keypoint_confidence),
            keypoint_precision=selected(self.keypoint_precision),
            covariance=selected(self.covariance),
        )

    @property
    def class_name(self) -> NDArray[np.object_]:
        """(N,) objects of type str, so that `d[d.class_name == "car"]` works.

        The background slot is named `__background__`, a slot without a class "".
        """
        return np.array(self.classes.names, dtype=object)[self.class_id]

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(N, H, W), whole frames, made anew each time; None without masks."""
        return None if self.masks is None else self.masks.to_bool()

    @property
    def keypoint_count(self) -> NDArray[np.int64]:
        """(N,) how many points the class of each row has; 0 without keypoints."""
        counts = np.zeros(len(self.classes), np.int64)
        if self.schema is not None:
            counts[: len(self.schema.counts)] = self.schema.counts
        return counts[self.class_id]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON.

        `{"width", "height", "detections": [{"xyxy", "confidence", "class_id", "class_name"}, ...]}`
        With masks each row has "mask", COCO's run-length code `{"size": [H, W], "counts": text}`.
        With keypoints it has "keypoints", `[x, y, confidence]` for each point of its class, and
        "covariance", `[xx, xy, yy]` for each, None where it is no finite number.
        """
        height, width = self.source_size
        columns = (
            self.xyxy.tolist(),
            self.confidence.tolist(),
            self.class_id.tolist(),
            self.class_name.tolist(),
        )
        rows: list[dict[str, Any]] = [
            {"xyxy": xyxy, "confidence": confidence, "class_id": slot, "class_name": name}
            for xyxy, confidence, slot, name in zip(*columns, strict=True)
        ]
        if self.masks is not None:
            for row, mask in zip(rows, self.masks.to_rle(), strict=True):
                row["mask"] = mask
        if self.keypoints is not None:
            for row, points in zip(rows, self._points(), strict=True):
                row["keypoints"] = points[:, :3].tolist()
                row["covariance"] = [
                    None if np.isnan(point).any() else point.tolist() for point in points[:, 3:]
                ]
        return {"width": width, "height": height, "detections": rows}

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Rows of a COCO results file: image_id, category_id, bbox [x, y, width, height], score.

        Masks add "segmentation", COCO's run-length code, and keypoints add "keypoints", the flat
        x, y, 1, ... of the row's class; COCO ignores the third number of results.
        category_id is the data set's own id. Rows of slots that have none, background and unnamed
        ones, cannot be written in COCO and are left out.
        """
        known = self[[self.classes.category_ids[slot] is not None for slot in self.class_id]]
        ids = [self.classes.category_ids[slot] for slot in known.class_id.tolist()]
        corners = known.xyxy.astype(np.float64)
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        columns = (ids, xywh.tolist(), known.confidence.tolist())
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
            for category_id, bbox, score in zip(*columns, strict=True)
        ]
        if known.masks is not None:
            for row, mask in zip(rows, known.masks.to_rle(), strict=True):
                row["segmentation"] = mask
        if known.keypoints is not None:
            for row, points in zip(rows, known._points(), strict=True):
                points[:, 2] = 1.0
                row["keypoints"] = points[:, :3].ravel().tolist()
        return rows

    def to_supervision(self) -> Any:
        """The same rows as `supervision.Detections`, as upstream's `predict` returns them.

        mask: (N, H, W) bool, whole frames, or None. data["class_name"]: (N,) objects;
        data["source_shape"]: (N, 2) int64 (height, width).
        With keypoints `supervision.KeyPoints`: xy, keypoint_confidence, detection_confidence,
        class_id, visible, where the row's class has the point, and in data also "xyxy",
        "keypoint_precision_cholesky" and, unless there are no rows, "covariance".
        Raises BackendUnavailable without the `supervision` extra.
        """
        data: dict[str, Any] = {
            "class_name": self.class_name,
            "source_shape": np.tile(np.array(self.source_size, dtype=np.int64), (len(self), 1)),
        }
        if self.keypoint_confidence is None:
            return _optional.supervision().Detections(
                xyxy=self.xyxy,
                confidence=self.confidence,
                class_id=self.class_id,
                mask=self.mask,
                data=data,
            )
        data |= {"xyxy": self.xyxy, "keypoint_precision_cholesky": self.keypoint_precision}
        if len(self):
            data["covariance"] = self.covariance
        return _optional.supervision().KeyPoints(
            xy=self.keypoints,
            keypoint_confidence=self.keypoint_confidence,
            detection_confidence=self.confidence,
            class_id=self.class_id,
            visible=self.keypoint_confidence > 0,
            data=data,
        )

    def _points(self) -> Iterator[NDArray[np.float64]]:
        """For each row (points of its class, 6): x, y, confidence, covariance xx, xy, yy."""
        if self.keypoints is None or self.keypoint_confidence is None or self.covariance is None:
            return
        every = np.concatenate(
            [
                self.keypoints,
                self.keypoint_confidence[..., None],
                self.covariance.reshape(*self.keypoints.shape[:2], 4)[..., [0, 1, 3]],
            ],
            axis=2,
            dtype=np.float64,
        )
        for points, count in zip(every, self.keypoint_count, strict=True):
            yield points[:count]


def _check(
    name: str,
    array: NDArray[np.generic],
    shape: tuple[int, ...],
    dtype: type[np.float32] | type[np.int64],
) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"Detections.{name} must have shape {shape} and dtype {np.dtype(dtype)}, "
            f"not {array.shape} and {array.dtype}"
        )
