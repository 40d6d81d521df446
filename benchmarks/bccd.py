"""`python -m benchmarks.bccd SOURCE DEST`: the BCCD photos as a data set to train on.

SOURCE is a clone of Shenggan/BCCD_Dataset: photos, Pascal VOC annotations, and the lists of its own
train, val and test split. DEST becomes `train|valid|test/_annotations.coco.json` with the photos
beside it. Photos and annotations are numbered from 1 in each split, in the order of file names.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rfdetr_edge.datasets.coco import ANNOTATIONS
from rfdetr_edge.errors import InputError, RFDETREdgeError
from rfdetr_edge.files import make_folder, replacing

CATEGORY_IDS = {"RBC": 1, "WBC": 2, "Platelets": 3}
_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def convert(source: Path, destination: Path) -> dict[str, int]:
    """Writes all splits and returns how many photos each has.

    Boxes are clipped to the photo, and those without an area are left out: the source has a few.
    Raises InputError for a source that is not laid out as above, or is malformed.
    """
    root = source / "BCCD"
    return {
        split: _convert_split(root, _names(root, listed), destination / split)
        for split, listed in _SPLITS.items()
    }


def _names(root: Path, listed: str) -> list[str]:
    path = root / "ImageSets" / "Main" / f"{listed}.txt"
    names = sorted(_content(path).decode().split())
    if not names:
        raise InputError(f"{path} lists no photos; clone the source again")
    return names


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} does not exist; SOURCE must be a clone of Shenggan/BCCD_Dataset")
    return path.read_bytes()


def _convert_split(root: Path, names: Sequence[str], folder: Path) -> int:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    make_folder(folder)
    for image_id, name in enumerate(names, start=1):
        photo = root / "JPEGImages" / f"{name}.jpg"
        if not photo.is_file():
            raise InputError(f"{photo} is listed in the source's split but does not exist")
        width, height, objects = _read_voc(root / "Annotations" / f"{name}.xml")
        images.append({"id": image_id, "file_name": photo.name, "width": width, "height": height})
        for category_id, bbox in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
        with replacing(folder / photo.name) as temporary:
            shutil.copyfile(photo, temporary)
    document = {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": name, "supercategory": "cell"}
            for name, category_id in CATEGORY_IDS.items()
        ],
    }
    with replacing(folder / ANNOTATIONS) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")
    return len(images)


def _read_voc(path: Path) -> tuple[int, int, list[tuple[int, list[float]]]]:
    """Width and height in pixels, and category id and (x, y, width, height) of every object."""
    content = _content(path)
    # a document type can define entities that grow without end; VOC files have none
    if b"<!DOCTYPE" in content:
        raise InputError(f"{path} declares a document type, which no VOC annotation does")
    try:
        tree = ElementTree.fromstring(content)
        width, height = (int(_text(tree, f"size/{side}")) for side in ("width", "height"))
        objects = []
        for row in tree.iterfind("object"):
            x0, y0, x1, y1 = (float(_text(row, f"bndbox/{corner}")) for corner in _CORNERS)
            x0, x1 = (min(max(x, 0.0), width) for x in (x0, x1))
            y0, y1 = (min(max(y, 0.0), height) for y in (y0, y1))
            category_id = CATEGORY_IDS[_text(row, "name")]
            if x0 < x1 and y0 < y1:
                objects.append((category_id, [x0, y0, x1 - x0, y1 - y0]))
    except (ElementTree.ParseError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no VOC annotation of BCCD: {error}") from None
    return width, height, objects


def _text(element: ElementTree.Element, path: str) -> str:
    """The text of a descendant; ValueError where there is none."""
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{element.tag}> lacks {path}")
    return text.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exits with 0, or with 2 and one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bccd", description="Turn BCCD's VOC files into a COCO data set."
    )
    parser.add_argument("source", type=Path, help="clone of Shenggan/BCCD_Dataset")
    parser.add_argument("destination", type=Path, help="folder to write")
    parsed = parser.parse_args(arguments)
    try:
        counts = convert(parsed.source, parsed.destination)
    except (RFDETREdgeError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    sizes = ", ".join(f"{count} {split}" for split, count in counts.items())
    parser.exit(0, f"{parsed.destination}: {sizes} photos\n")


if __name__ == "__main__":
    main()
