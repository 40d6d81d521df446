import copy
import json
import math
import re
import shutil

import numpy as np
import pytest
from graphs import CELLS, metadata, save_detector
from graphs import SCHEMA as GRAPH_SCHEMA

from rfdetr_edge import Detections, InputError, demo
from rfdetr_edge.classes import named_classes
from rfdetr_edge.cli import main
from rfdetr_edge.images import write_image
from rfdetr_edge.keypoint_schema import PERSON, KeypointSchema, class_keypoints
from rfdetr_edge.masks import Masks

pytest.importorskip("pycocotools")
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.evaluation import (
    average_precision,
    encoded,
    every_drop,
    every_precision,
    precision_drop,
)
from rfdetr_edge.f1 import best_threshold

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


def reference(document, results, kind, sigmas=None, category_id=None):
    """AP, AP50, AP75 and AR of a plain run of pycocotools."""
    truth = COCO()
    truth.dataset = copy.deepcopy({"info": {}, **document})
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
    if sigmas is not None:
        run.params.kpt_oks_sigmas = np.array(sigmas)
    if category_id is not None:
        run.params.catIds = [category_id]
    run.evaluate()
    run.accumulate()
    run.summarize()
    return [run.stats[index] for index in ((0, 1, 2, 5) if kind == "keypoints" else (0, 1, 2, 8))]


def figures(result):
    return [result.ap, result.ap50, result.ap75, result.ar]


GRID = (24, 32)
CELLS_OF = np.stack(np.meshgrid(*(np.arange(n) * 20 + 9.5 for n in GRID[::-1])), -1)


def blob_logits(box):
    """The ellipse in a box as logits of a grid of stride 20."""
    x, y, width, height = box
    offsets = (CELLS_OF - (x + width / 2, y + height / 2)) / (width / 2, height / 2)
    return (1 - (offsets**2).sum(-1)).astype(np.float32)


def ellipse(box):
    x, y, width, height = box
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    points = np.stack([x + width * (1 + np.cos(angles)) / 2, y + height * (1 + np.sin(angles)) / 2])
    return [np.round(points.T, 2).ravel().tolist()]


def run_lengths(frame):
    """A mask as COCO's runs: as text, and as numbers."""
    code = rle.encode(np.asfortranarray(frame))
    column = frame.ravel(order="F")
    starts = np.flatnonzero(np.diff(column, prepend=False))
    counts = np.diff([0, *starts, column.size]).tolist()
    size = list(frame.shape)
    return {"size": size, "counts": code["counts"].decode()}, {"size": size, "counts": counts}


def random_box(rng, near=None):
    x, y, width, height = near or (0, 0, 0, 0)
    if near is None:
        return [*rng.uniform(20, 300, 2).round(1), *rng.uniform(60, 160, 2).round(1)]
    return [v + rng.normal(0, 9) for v in (x, y)] + [v + rng.normal(0, 9) for v in (width, height)]


def shuffled_scores(rng, rows):
    """Random scores, and no order of rows."""
    return rng.permutation(np.linspace(0.01, 0.99, rows)).astype(np.float32)


@pytest.fixture(scope="module")
def masked():
    """A document with masks of every form and crowds among them, and detections."""
    rng = np.random.default_rng(0)
    boxes = [(1 + n % 3, 1 + n % 2, random_box(rng)) for n in range(24)]
    content = document(boxes)
    for number, row in enumerate(content["annotations"]):
        (frame,) = Masks(blob_logits(row["bbox"])[None], SIZE).to_bool()
        crowd = number in (4, 9)
        forms = *run_lengths(frame), ellipse(row["bbox"])
        segmentation = forms[1 if crowd else number % 3]
        row.update(segmentation=segmentation, area=int(frame.sum()), iscrowd=int(crowd))
    found = {}
    for image in (1, 2, 3):
        own = [(category - 1, box) for i, category, box in boxes if i == image]
        guesses = [(slot, random_box(rng, box)) for slot, box in own for _ in range(2)]
        guesses += [(int(rng.integers(4)), random_box(rng)) for _ in range(6)]
        xyxy = np.array([[x, y, x + w, y + h] for _, (x, y, w, h) in guesses], np.float32)
        logits = np.stack([blob_logits(box) for _, box in guesses])
        slots = np.array([slot for slot, _ in guesses])
        scores = shuffled_scores(rng, len(guesses))
        masks = Masks(logits, SIZE)
        found[image] = Detections(xyxy, scores, slots, CELLS, SIZE, masks=masks)
    return content, found


def mask_results(found):
    """COCO results from whole frames; background cannot be written."""
    for image, one in found.items():
        foreground = one[one.class_id < 3]
        for row, frame in zip(foreground, foreground.masks.to_bool(), strict=True):
            category, score = int(row.class_id[0]) + 1, float(row.confidence[0])
            named = {"image_id": image, "category_id": category, "score": score}
            yield {**named, "segmentation": run_lengths(frame)[0]}


def test_mask_ap_is_that_of_pycocotools(masked):
    content, found = masked
    result = average_precision(content, found, kind="segm")
    expected = reference(content, list(mask_results(found)), "segm")
    assert figures(result) == pytest.approx(expected, abs=1e-6)
    assert 0.1 < result.ap < 0.9
    assert average_precision(content, found).ap != pytest.approx(result.ap)


def test_masks_kept_as_run_lengths_give_the_same(masked):
    content, found = masked
    kept = {image: encoded(one) for image, one in found.items()}
    assert all(one.masks is None for one in kept.values())
    result = every_precision(content, kept)
    assert list(result) == ["bbox", "segm"]
    assert result["bbox"] == average_precision(content, found)
    assert result["segm"] == average_precision(content, found, kind="segm")


def test_the_order_of_rows_does_not_matter(masked):
    content, found = masked
    ordered = {image: one[np.argsort(-one.confidence)] for image, one in found.items()}
    assert every_precision(content, ordered) == every_precision(content, found)
    assert best_threshold(content, ordered) == best_threshold(content, found)


BOLT = class_keypoints(tuple("abcde"), sigmas=(0.03, 0.05, 0.08, 0.1, 0.2))
SCHEMA = KeypointSchema((PERSON, class_keypoints(()), BOLT))  # slots 0 and 2 have points
POINTS = {1: len(PERSON.names), 3: len(BOLT.names)}
SIGMAS = {1: PERSON.sigmas, 3: BOLT.sigmas}


def random_points(rng, box, count):
    x, y, width, height = box
    return np.array([x, y]) + rng.uniform(0, 1, (count, 2)) * (width, height)


@pytest.fixture(scope="module")
def pointed():
    """A document of 17-point and 5-point classes, marks 0, 1 and 2, a crowd, and detections."""
    rng = np.random.default_rng(1)
    boxes = [(1 + n % 3, 1 + 2 * (n % 2), random_box(rng)) for n in range(36)]
    content = document(boxes)
    truth = []
    for number, row in enumerate(content["annotations"]):
        points = random_points(rng, row["bbox"], POINTS[row["category_id"]])
        marks = rng.integers(0, 3, len(points)) * (number % 9 != 3)  # some have none labelled
        truth.append(points)
        row.update(
            keypoints=np.column_stack([points, marks]).round(2).ravel().tolist(),
            num_keypoints=int((marks > 0).sum()),
            area=row["bbox"][2] * row["bbox"][3] * 0.6,
            iscrowd=int(number in (7, 12)),
        )
    found = {}
    for image in (1, 2, 3):
        guesses = []
        for (i, category, box), points in zip(boxes, truth, strict=True):
            for spread in (2, 12, 30, 40) if i == image else ():
                guesses.append((category, random_box(rng, box), rng.normal(points, spread)))
        for category in (1, 3, 1, 3):
            box = random_box(rng)
            guesses.append((category, box, random_points(rng, box, POINTS[category])))
        guesses.append((2, random_box(rng), np.zeros((0, 2))))  # a class without points
        keypoints = np.zeros((len(guesses), SCHEMA.widest, 2), np.float32)
        confidence = np.zeros(keypoints.shape[:2], np.float32)
        for row, (_, _, points) in enumerate(guesses):
            keypoints[row, : len(points)] = points
            confidence[row, : len(points)] = 0.9
        found[image] = Detections(
            np.array([[x, y, x + w, y + h] for _, (x, y, w, h), _ in guesses], np.float32),
            shuffled_scores(rng, len(guesses)),
            np.array([category - 1 for category, _, _ in guesses]),
            CELLS,
            SIZE,
            schema=SCHEMA,
            keypoints=keypoints,
            keypoint_confidence=confidence,
            keypoint_precision=np.zeros((*confidence.shape, 3), np.float32),
            covariance=np.zeros((*confidence.shape, 2, 2), np.float32),
        )
    return content, found


def point_results(found, category):
    for image, one in found.items():
        for slot, score, points in zip(one.class_id, one.confidence, one.keypoints, strict=True):
            if slot == category - 1:
                own = points[: POINTS[category]].astype(float)
                flat = np.column_stack([own, np.ones(len(own))]).ravel().tolist()
                row = {"image_id": image, "category_id": category, "keypoints": flat}
                yield {**row, "score": float(score)}


def by_category(content, found):
    for category, sigmas in SIGMAS.items():
        results = list(point_results(found, category))
        yield reference(content, results, "keypoints", sigmas, category)


def test_keypoint_ap_is_that_of_pycocotools_with_the_sigmas_of_each_class(pointed):
    content, found = pointed
    result = average_precision(content, found, kind="keypoints")
    people, bolts = by_category(content, found)
    assert figures(result) == pytest.approx(np.mean([people, bolts], axis=0), abs=1e-6)
    assert result.per_class == pytest.approx({"RBC": people[0], "Platelets": bolts[0]}, abs=1e-6)
    assert all(0.1 < ap < 0.9 for ap in result.per_class.values())
    assert list(every_precision(content, found)) == ["bbox", "keypoints"]


def test_own_sigmas_take_the_place_of_the_schemas_and_choose_the_categories(pointed):
    content, found = pointed
    own = (0.2, 0.1, 0.05, 0.05, 0.02)
    result = average_precision(content, found, kind="keypoints", sigmas={3: own})
    expected = reference(content, list(point_results(found, 3)), "keypoints", own, 3)
    assert figures(result) == pytest.approx(expected, abs=1e-6)
    assert list(result.per_class) == ["Platelets"]
    with pytest.raises(InputError, match="category 3 has 5 keypoints"):
        average_precision(content, found, kind="keypoints", sigmas={3: own[:4]})


def test_of_keypoints_the_twenty_most_confident_count(pointed):
    content, found = pointed
    counts = [None, 20, 5, 100]
    default, twenty, five, hundred = (
        average_precision(content, found, kind="keypoints", max_detections=n).ar for n in counts
    )
    assert five < default == twenty < hundred


def test_an_annotation_without_labelled_points_is_neither_missed_nor_wrong(pointed, write):
    content, found = pointed
    content = copy.deepcopy(content)
    for row, points in zip(content["categories"], SCHEMA.classes, strict=True):
        row["keypoints"] = list(points.names)
    for row in content["annotations"]:
        if row["num_keypoints"] == 0:
            del row["num_keypoints"], row["keypoints"]
    result = average_precision(write(content), found, kind="keypoints")
    assert result == average_precision(*pointed, kind="keypoints")


def test_detections_without_masks_or_keypoints_have_none_to_evaluate():
    for kind in ("segm", "keypoints"):
        with pytest.raises(InputError, match=f"no {kind} to evaluate"):
            average_precision(document([]), {1: detections()}, kind=kind)


def test_an_annotation_without_a_mask_is_an_error(masked):
    content, found = masked
    for missing in ({}, {"segmentation": []}, {"segmentation": None}):
        first, *rest = (dict(row) for row in content["annotations"])
        del first["segmentation"]
        wrong = {**content, "annotations": [{**first, **missing}, *rest]}
        with pytest.raises(InputError, match=r"annotation 1 .* has no segmentation"):
            average_precision(wrong, found, kind="segm")


def test_another_number_of_keypoints_is_an_error(pointed):
    content, found = pointed
    first, *rest = content["annotations"]
    wrong = {**first, "keypoints": first["keypoints"][:15]}
    with pytest.raises(InputError, match=r"annotation 1 .* has 15 keypoint numbers, but the 17"):
        average_precision({**content, "annotations": [wrong, *rest]}, found, kind="keypoints")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "cells.onnx"
    return str(save_detector(path, metadata_json=metadata().to_json()))


@pytest.fixture
def data_set(write):
    return write(document([(n, c, [0, 0, 300, 200 + 20 * c]) for n in (1, 2, 3) for c in NAMES]))


@pytest.fixture
def rivals(write):
    """A document of 8 images and what two artifacts find there, the second worse."""
    rng = np.random.default_rng(3)
    boxes, found = [], ({}, {})
    for image in range(1, 9):
        for category in (1, 2):
            xywh = [*rng.uniform(0, 300, 2), *rng.uniform(20, 100, 2)]
            boxes.append((image, category, xywh))
        truth = [xywh for number, _, xywh in boxes if number == image]
        for artifact, noise in zip(found, (4, 12), strict=True):
            rows = []
            for slot, (x, y, w, h) in enumerate(truth):
                moved = np.array([x, y, x + w, y + h]) + rng.normal(0, noise, 4)
                rows.append((moved, rng.uniform(0.1, 1), slot))
            artifact[image] = detections(*rows)
    content = document(boxes)
    content["images"] = [
        {"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640}
        for number in range(1, 9)
    ]
    return read_annotations(write(content)), *found


def test_the_drop_is_that_of_the_two_precisions_and_its_interval_that_of_redrawn_images(rivals):
    content, first, second = rivals
    drop = precision_drop(content, first, second, resamples=20, seed=5)
    assert drop.reference == pytest.approx(average_precision(content, first).ap, abs=1e-12)
    assert drop.candidate == pytest.approx(average_precision(content, second).ap, abs=1e-12)
    assert drop.points == pytest.approx(100 * (drop.reference - drop.candidate))
    rng, drops = np.random.default_rng(5), []
    for _ in range(20):
        drawn = rng.integers(8, size=8) + 1
        redrawn = {
            **content,
            "images": [
                {**content["images"][image - 1], "id": number}
                for number, image in enumerate(drawn, start=1)
            ],
            "annotations": [
                {**row, "image_id": number, "id": 100 * number + row["id"]}
                for number, image in enumerate(drawn, start=1)
                for row in content["annotations"]
                if row["image_id"] == image
            ],
        }
        both = (
            average_precision(redrawn, {n: found[i] for n, i in enumerate(drawn.tolist(), 1)}).ap
            for found in (first, second)
        )
        drops.append(100 * np.subtract(*both))
    assert (drop.low, drop.high) == pytest.approx(np.percentile(drops, [2.5, 97.5]), abs=1e-9)
    assert drop.low < drop.points < drop.high


def test_nothing_is_lost_against_itself(rivals):
    content, first, _ = rivals
    (kind, drop), *others = every_drop(content, first, first, resamples=10).items()
    assert (kind, drop.points, drop.low, drop.high) == ("bbox", 0, 0, 0)
    assert not others


def test_a_drop_needs_the_same_images(rivals):
    content, first, second = rivals
    with pytest.raises(InputError, match="different images"):
        precision_drop(content, first, {1: second[1]})


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


@pytest.fixture
def patchwork(tmp_path):
    """A folder of pictures that the graphs' networks give masks of many forms on."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for path in PHOTOS:
        patches = rng.integers(0, 256, (6, 8, 3), np.uint8)
        write_image(folder / path.name, patches.repeat(80, axis=0).repeat(80, axis=1))
    return folder


@pytest.mark.parametrize(
    ("task", "output", "kind"),
    [("segmentation", "masks", "segm"), ("keypoint", "keypoints", "keypoints")],
)
def test_evaluate_gives_the_figures_of_the_task_beside_those_of_the_boxes(
    task, output, kind, write, patchwork, tmp_path, capsys
):
    described = metadata(num_select=96, task=task).to_json()
    model = tmp_path / "artifact.onnx"
    save_detector(model, **{output: output}, metadata_json=described)
    results_file = tmp_path / "results.json"
    options = ["--model", str(model), "--coco", str(results_file), "--threshold", "0"]
    assert main(["predict", str(patchwork), *options]) == 0
    results = json.loads(results_file.read_text())
    # Some of what is found is there, and some of that in another form or place.
    truth = [row for row in results if row["category_id"] != 2][::5]
    content = document([(row["image_id"], row["category_id"], row["bbox"]) for row in truth])
    for row, found in zip(content["annotations"], truth, strict=True):
        row.update(area=5000, iscrowd=0)
        moved = row["id"] % 3 == 0
        if kind == "segm":
            row["segmentation"] = ellipse(row["bbox"]) if moved else found["segmentation"]
        else:
            points = np.reshape(found["keypoints"], (-1, 3)) + np.array([8 * moved, 0, 0])
            row.update(keypoints=points.ravel().tolist(), num_keypoints=len(points))
    for category, points in zip(content["categories"], GRAPH_SCHEMA.classes, strict=True):
        category["keypoints"] = list(points.names)
    annotations = write(content)

    capsys.readouterr()
    call = ["evaluate", str(model), "--annotations", str(annotations), "--images", str(patchwork)]
    assert main([*call, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    runs = [(results, None, None)]
    if kind == "keypoints":
        runs = [
            ([row for row in results if row["category_id"] == category], points.sigmas, category)
            for category, points in enumerate(GRAPH_SCHEMA.classes, start=1)
            if points.names
        ]
    expected = np.mean([reference(content, rows, kind, *rest) for rows, *rest in runs], axis=0)
    names = ("ap", "ap50", "ap75", "ar")
    assert [result[kind][name] for name in names] == pytest.approx(expected, abs=1e-6)
    assert 0.01 < result[kind]["ap"] < 1
    boxes = [result[name] for name in names]
    assert boxes == pytest.approx(reference(content, results, "bbox"), abs=1e-6)
    assert main(call) == 0
    noun = {"segm": "mask", "keypoints": "keypoint"}[kind]
    shown = re.search(rf"^{noun} AP 50:95 +(\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert shown[1] == f"{result[kind]['ap']:.4f}"


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
