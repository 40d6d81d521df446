"""COCO layouts: where each split's annotation file is, and which categories are classes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rfdetr_edge.annotation_shapes import size_misfit
from rfdetr_edge.annotations import AnnotationFile, scan_annotations
from rfdetr_edge.errors import InputError
from rfdetr_edge.image_size import image_size

ANNOTATIONS = "_annotations.coco.json"
FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "val"),
    "test": ("test",),
}


def read_roboflow(root: Path) -> dict[str, AnnotationFile]:
    """The splits that are there, of `train|valid|test/_annotations.coco.json`; images beside it."""
    found = {}
    for split, folders in FOLDERS.items():
        paths = [root / folder / ANNOTATIONS for folder in folders]
        for path in [path for path in paths if path.is_file()][:1]:
            found[split] = _with_images(scan_annotations(path))
    return found


def read_plain(root: Path, stem: str) -> dict[str, AnnotationFile]:
    """The splits that are there, of `annotations/<stem>_{train,val}2017.json`."""
    found = {}
    for split, folder in {"train": "train2017", "valid": "val2017"}.items():
        path = root / "annotations" / f"{stem}_{folder}.json"
        if path.is_file():
            found[split] = _with_images(scan_annotations(path, root / folder))
    return found


def _with_images(file: AnnotationFile) -> AnnotationFile:
    """With the faults of the images that a file lists, and without those images."""
    misfits = [
        (row, _misfit(file.folder / row["file_name"], row)) for row in file.document["images"]
    ]
    faults = [file.fault(row, message) for row, message in misfits if message is not None]
    sound = [row for row, message in misfits if message is None]
    document = {**file.document, "images": sound}
    return replace(file, document=document, faults=(*file.faults, *faults))


def _misfit(path: Path, row: Mapping[str, Any]) -> str | None:
    """Why an image is not the one that its entry describes."""
    if (message := size_misfit(row)) is not None:
        return message
    try:
        found = image_size(path)
    except InputError as error:
        return str(error)
    height, width = row["height"], row["width"]
    if found == (height, width):
        return None
    return (
        f"{path} is {found[1]}x{found[0]} pixels, but said to be {width}x{height}: its boxes "
        "belong to another picture"
    )


def class_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The categories that are classes, in order of their ids.

    Those that only group others are not: named as another's supercategory, without annotations of
    their own.
    """
    used = {row["category_id"] for row in document["annotations"]}
    groups = [row.get("supercategory") for row in document["categories"]]
    kept = (row for row in document["categories"] if row["id"] in used or row["name"] not in groups)
    return sorted(kept, key=lambda row: int(row["id"]))
