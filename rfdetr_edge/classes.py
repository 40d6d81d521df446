"""The class table: what each slot of the class head means.

A slot is a column of the `labels` output and is reported as `class_id`. Which slot carries which
name, which category id of the data set, and which one is background depends on who trained the
model, so the artifact says it; nothing here guesses from shapes.

Layouts:
    contiguous        slot i is class i; there is no background slot
    coco              slot = COCO category id, 1 to 90 with gaps (published checkpoints, 91 slots)
    background-last   slot i is class i; the last slot is background (fine-tuned checkpoints)
    background-first  slot 0 is background; slot i is class i - 1 (legacy keypoint checkpoints)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rfdetr_edge.errors import InputError

Layout = Literal["contiguous", "coco", "background-last", "background-first"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
BACKGROUND = "__background__"

# fmt: off
COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
_COCO_GAPS = frozenset({0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
# fmt: on
COCO_IDS = tuple(i for i in range(91) if i not in _COCO_GAPS)


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Name and category id of every slot, in slot order.

    names: "" for a slot without a class, `__background__` for the background slot.
    category_ids: the data set's own id, None for slots without a class. `to_coco()` writes it.
    """

    layout: Layout
    names: tuple[str, ...]
    category_ids: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(
                f"unknown class layout {self.layout!r}; choose one of {', '.join(LAYOUTS)}"
            )
        if len(self.names) != len(self.category_ids):
            raise InputError(
                f"a class table needs one category id a slot: got {len(self.names)} names and "
                f"{len(self.category_ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.names)

    def foreground(self) -> dict[str, int]:
        """Class name -> category id, in slot order, without background and unnamed slots."""
        return {
            name: category_id
            for name, category_id in zip(self.names, self.category_ids, strict=True)
            if category_id is not None
        }


def coco_classes(slots: int = 91) -> ClassTable:
    """The published COCO table: slot = category id; slots without a class have the name ""."""
    by_id = dict(zip(COCO_IDS, COCO_NAMES, strict=True))
    return ClassTable(
        "coco",
        tuple(by_id.get(slot, "") for slot in range(slots)),
        tuple(slot if slot in by_id else None for slot in range(slots)),
    )


def named_classes(
    layout: Layout, class_names: Sequence[str], category_ids: Sequence[int] | None = None
) -> ClassTable:
    """A table from foreground names in class order.

    category_ids: the data set's ids of the same classes; None numbers them as the slots are.
    Raises InputError for the `coco` layout, whose names are fixed, and for counts that differ.
    """
    if layout == "coco":
        raise InputError("the coco layout has fixed names; use it without class names")
    first = 1 if layout == "background-first" else 0
    ids = range(first, first + len(class_names)) if category_ids is None else category_ids
    if len(ids) != len(class_names):
        raise InputError(
            f"{len(class_names)} class names need as many category ids, not {len(ids)}"
        )
    before: tuple[str, ...] = (BACKGROUND,) if layout == "background-first" else ()
    after: tuple[str, ...] = (BACKGROUND,) if layout == "background-last" else ()
    return ClassTable(
        layout,
        (*before, *class_names, *after),
        (*(None for _ in before), *ids, *(None for _ in after)),
    )


def with_slots(classes: ClassTable, slots: int) -> ClassTable:
    """With unnamed slots after the classes, before the background where that is the last slot."""
    end = len(classes) - (classes.layout == "background-last")
    names, ids, spare = classes.names, classes.category_ids, slots - len(classes)
    return ClassTable(
        classes.layout,
        (*names[:end], *[""] * spare, *names[end:]),
        (*ids[:end], *[None] * spare, *ids[end:]),
    )
