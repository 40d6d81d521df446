"""What the class slots and keypoints of a checkpoint mean, by what its file says of them.

args are the settings it was trained with, settings those of its model, own our key `rfdetr_edge`;
all may be missing or malformed.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rfdetr_edge.classes import (
    COCO_NAMES,
    ClassTable,
    Layout,
    coco_classes,
    named_classes,
    with_slots,
)
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.keypoint_schema import (
    PERSON,
    TRACE_ALPHA,
    KeypointSchema,
    numbered_schema,
    parse_schema,
)

logger = logging.getLogger(__name__)


def find_classes(
    args: dict[str, Any], own: dict[str, Any], slots: int, schema: KeypointSchema | None, path: Path
) -> ClassTable:
    """COCO's where the file says so, or has 91 slots with COCO's names or none; else its names.

    Slots beyond the names stay unnamed. Classes that do not fit the slots become numbers. With
    keypoints, slot 0 is background if it has none; if it has a person's and no name, it is person.
    """
    from_zero = schema is not None and schema.counts[0] > 0
    usual: Layout = "background-last" if schema is None or from_zero else "background-first"
    layout, ids = own.get("layout", usual), own.get("category_ids")
    names: Any = args.get("class_names")
    unnamed = names in (None, [], ())
    published = unnamed or (slots == 91 and names in (COCO_NAMES, [*COCO_NAMES]))
    if layout == "coco" or (published and slots == 91 and not from_zero):
        return coco_classes(slots)
    if published and schema is not None and schema.classes == (PERSON,):
        return with_slots(named_classes("background-last", ["person"]), slots)
    if not unnamed:
        fits = _list_of(str, names) and len(names) <= slots - (layout != "contiguous")
        if fits and (ids is None or (_list_of(int, ids) and len(ids) == len(names))):
            return with_slots(named_classes(layout, names, ids), slots)
        text = "%s: class_names %.99r with category_ids %.99r do not fit its %d slots"
        logger.warning(text, path, names, ids, slots)
    return named_classes(usual, [f"class_{slot}" for slot in range(slots - 1)])


def find_schema(
    own: dict[str, Any],
    settings: dict[str, Any],
    active: Tensor | None,
    usual: Sequence[int],
    path: Path,
) -> KeypointSchema:
    """Ours, where the file has it; else the counts of upstream's mask or settings, or the usual.

    active: `_kp_active_mask` (classes, widest), true where a class has a point.
    Raises ArtifactError for a schema that cannot be read.
    """
    counts = settings.get("num_keypoints_per_class") or usual
    if active is not None and active.ndim == 2 and active.numel():
        counts = active.count_nonzero(dim=1).tolist()
    alpha = settings.get("postprocess_trace_alpha", TRACE_ALPHA)
    try:
        if "keypoints" in own:
            return parse_schema(own["keypoints"])
        if not (_list_of(int, counts) and min(counts) >= 0 and type(alpha) in (int, float)):
            raise InputError(f"keypoints of each class {counts!r:.99}, trace_alpha {alpha!r:.99}")
        return numbered_schema(counts, alpha)
    except InputError as error:
        raise ArtifactError(f"{path} has a keypoint schema that cannot be read: {error}") from None


def _list_of(kind: type, values: object) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is kind for value in values)
