import copy
import json
import math
import shutil

import numpy as np
import pytest
from graphs import CELLS, metadata, save_detector

from rfdetr_edge import Detections, InputError, demo
from rfdetr_edge.classes import named_classes
from rfdetr_edge.cli import main

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.evaluation import average_precision

PHOTOS = demo.photo_paths()
SIZE = (480, 640)
NAMES = {1: "RBC", 2: "WBC", 3: "Platelets"}


def document(boxes, categories=NAMES, **changes):
    """boxes: (image id, category id, xywh)."""
    return {
        "images": [
            {"id": number, "file_name": path.name, "height": 480, "width": 640}
            for number, path in enumerate(PHOTOS, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": bbox}
            for number, (image, category, bbox) in enumerate(boxes, start=1)
        ],
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def write_document(content):
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_document


def detections(*rows, classes=CELLS):
    """rows: (xyxy, confidence, class id)."""
    boxes, confidence, class_id = zip(*rows, strict=True) if rows else ([], [], [])
    return Detections(
        np.array(boxes, np.float32).reshape(len(rows), 4),
        np.array(confidence, np.float32),
        np.array(class_id, np.int64),
        classes,
        SIZE,
    )


BOX = [100, 100, 100, 100]
SAME = [100, 100, 200, 200]
SHIFTED = [100, 100, 200, 162]  # IoU 0.62
ELSEWHERE = [400, 300, 500, 400]


@pytest.mark.parametrize(
    ("rows", "ap", "ap50", "ap75"),
    [
        ([(SAME, 0.9, 0)], 1, 1, 1),
        ([(SHIFTED, 0.9, 0)], 0.3, 1, 0),  # IoU 0.50, 0.55 and 0.60 of ten
        ([(ELSEWHERE, 0.9, 0), (SAME, 0.8, 0)], 0.5, 0.5, 0.5),
        ([(SAME, 0.9, 0), (ELSEWHERE, 0.8, 0)], 1, 1, 1),
        ([(SAME, 0.9, 1)], 0, 0, 0),
        ([(SAME, 0.9, 3)], 0, 0, 0),  # background counts for nothing
        ([], 0, 0, 0),
    ],
)
def test_average_precision_of_cases_worked_by_hand(write, rows, ap, ap50, ap75):
    result = average_precision(write(document([(1, 1, BOX)])), {1: detections(*rows)})
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((ap, ap50, ap75))
    assert result.per_class["RBC"] == pytest.approx(ap)
    assert math.isnan(result.per_class["WBC"])
    assert result.images == 1


def test_only_the_images_given_are_evaluated(write):
    path = write(document([(1, 1, BOX), (2, 1, BOX)]))
    hit, nothing = detections((SAME, 0.9, 0)), detections()
    assert average_precision(path, {1: hit}).ap == pytest.approx(1)
    assert average_precision(path, {1: hit, 2: nothing}).ap == pytest.approx(51 / 101)
    assert average_precision(path, {1: hit, 2: nothing}).ar == pytest.approx(0.5)


def test_category_ids_go_through_the_class_table(write):
    classes = named_classes("contiguous", ["WBC", "RBC"], [20, 10])
    path = write(document([(1, 10, BOX)], {10: "RBC", 20: "WBC"}))
    found = detections((SAME, 0.9, 1), classes=classes)
    assert average_precision(path, {1: found}).per_class["RBC"] == pytest.approx(1)


def test_only_the_most_confident_detections_of_a_class_count(write):
    path = write(document([(1, 1, BOX)]))
    found = {1: detections((ELSEWHERE, 0.9, 0), (SHIFTED, 0.8, 0), (SAME, 0.7, 0), (SAME, 0.6, 1))}
    recalls = [average_precision(path, found, max_detections=n).ar for n in (1, 2, 3, 100)]
    assert recalls == pytest.approx([0, 0.3, 1, 1])
    assert average_precision(path, found).ap == pytest.approx(0.3 / 2 + 0.7 / 3)


def test_a_document_in_memory_gives_what_its_file_gives_and_stays_as_it_is(write):
    path = write(document([(1, 1, BOX), (2, 2, BOX)]))
    read = read_annotations(path)
    before = copy.deepcopy(read)
    found = {1: detections((SHIFTED, 0.9, 0)), 2: detections((SAME, 0.9, 1))}
    in_memory, from_file = (average_precision(place, found) for place in (read, path))
    assert (in_memory.ap, in_memory.ar) == (from_file.ap, from_file.ar)
    assert in_memory.ap == pytest.approx(0.65)
    assert read == before


def test_nothing_is_printed(write, capfd):
    average_precision(write(document([(1, 1, BOX)])), {1: detections((SAME, 0.9, 0))})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ({0: "RBC", 1: "WBC"}, "calls category 0 'RBC'"),
        ({1: "cat"}, "calls category 1 'cat'"),
        ({7: "cat", 1: "RBC"}, "annotations of category 7 'cat'"),
    ],
)
def test_a_class_table_that_does_not_fit_is_an_error(write, categories, message):
    path = write(document([(1, category, BOX) for category in categories], categories))
    with pytest.raises(InputError, match=message):
        average_precision(path, {1: detections((SAME, 0.9, 0))})


def test_categories_without_annotations_do_not_matter(write):
    path = write(document([(1, 1, BOX)], {0: "cells", **NAMES}))
    assert average_precision(path, {1: detections((SAME, 0.9, 0))}).ap == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken", "JSON"),
        ("[]", "no JSON object"),
        ({"images": []}, "categories"),
        (document([], annotations=[{"id": 1}]), "'image_id' of type int"),
        (document([(1, 1, [1, 2, 3])]), "bbox of annotation 1"),
        (document([(1, 1, [1, 2, 3, math.nan])]), "bbox of annotation 1"),
        (document([(1, "1", BOX)]), "'category_id' of type int"),
        (document([], images=[{"id": 5, "file_name": "a.jpg"}]), "no image of id 1"),
    ],
)
def test_a_file_that_is_no_annotation_file_is_an_error(write, content, message):
    with pytest.raises(InputError, match=message):
        average_precision(write(content), {1: detections()})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "cells.onnx"
    return str(save_detector(path, metadata_json=metadata().to_json()))


@pytest.fixture
def data_set(write):
    return write(document([(n, c, [0, 0, 300, 200 + 20 * c]) for n in (1, 2, 3) for c in NAMES]))


def test_evaluate_gives_what_pycocotools_gives_for_the_results_file(
    model, data_set, tmp_path, capsys
):
    folder = str(PHOTOS[0].parent)
    call = ["evaluate", model, "--annotations", str(data_set), "--images", folder]
    assert main([*call, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    results_file = tmp_path / "results.json"
    options = ["--model", model, "--coco", str(results_file), "--threshold", "0"]
    assert main(["predict", folder, *options]) == 0

    document = json.loads(data_set.read_text())
    for annotation in document["annotations"]:
        annotation.update(area=annotation["bbox"][2] * annotation["bbox"][3], iscrowd=0)
    data_set.write_text(json.dumps({**document, "info": {}}))
    truth = COCO(str(data_set))
    reference = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    names = ("ap", "ap50", "ap75", "ar")
    expected = [reference.stats[index] for index in (0, 1, 2, 8)]
    assert [result[name] for name in names] == pytest.approx(expected)
    assert 0 < result["ap"] < 1
    assert np.mean(list(result["per_class"].values())) == pytest.approx(result["ap"])
    assert 0 < result["best_threshold"]["f1"] < 1

    capsys.readouterr()
    assert main(call) == 0
    assert f"AP 50:95        {result['ap']:.4f}" in (out := capsys.readouterr().out)
    assert f"best threshold  {result['best_threshold']['threshold']:.4f}" in out


@pytest.mark.parametrize("fault", ["missing", "size"])
def test_evaluate_refuses_images_that_do_not_fit_the_annotations(
    model, data_set, tmp_path, fault, capsys
):
    for path in PHOTOS:
        shutil.copy(path, tmp_path)
    if fault == "missing":
        (tmp_path / PHOTOS[1].name).unlink()
    else:
        data_set.write_text(data_set.read_text().replace('"height": 480', '"height": 640', 1))
    call = ["evaluate", model, "--annotations", str(data_set), "--images", str(tmp_path)]
    assert main(call) == 2
    message = {"missing": PHOTOS[1].name, "size": "640x480 pixels, but"}[fault]
    assert message in capsys.readouterr().err
