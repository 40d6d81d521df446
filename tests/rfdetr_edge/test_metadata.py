import json
from dataclasses import replace
from typing import get_args

import pytest
from graphs import CELLS, SCHEMA, metadata

from rfdetr_edge import MetadataError
from rfdetr_edge.metadata import Precision, parse_metadata


@pytest.mark.parametrize("task", ["detection", "segmentation", "keypoint"])
def test_every_task_comes_back_as_written(task):
    document = metadata(task=task)
    assert parse_metadata(document.to_json()) == document


@pytest.mark.parametrize("precision", get_args(Precision))
def test_every_precision_comes_back_as_written(precision):
    assert get_args(Precision)[:3] == ("fp32", "fp16", "int8")
    document = replace(metadata(), precision=precision)
    assert parse_metadata(document.to_json()) == document


def test_the_converter_comes_back_as_written():
    origin = replace(metadata().provenance, converter="litert-torch 0.10.0")
    document = replace(metadata(), provenance=origin)
    assert parse_metadata(document.to_json()) == document
    assert "converter" not in metadata().to_json()


def test_a_detector_says_nothing_of_masks_and_keypoints():
    assert json.loads(metadata().to_json()).keys().isdisjoint({"mask_stride", "keypoints"})


def changed(task, /, **fields):
    return json.dumps(json.loads(metadata(task=task).to_json()) | fields)


def without(task, name):
    document = json.loads(metadata(task=task).to_json())
    del document[name]
    return json.dumps(document)


POINTS = SCHEMA.to_dict()
ONE = {"names": ["a"], "sigmas": [0.1], "skeleton": [], "flip_pairs": []}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed("detection", task="pose"), "'pose'; this version knows detection, segmentation"),
        (without("segmentation", "mask_stride"), "'mask_stride' is missing .* segmentation; exp"),
        (without("keypoint", "keypoints"), "'keypoints' is missing .* keypoint; export it again"),
        (changed("detection", mask_stride=4), "'mask_stride' has no place .* detection"),
        (changed("keypoint", mask_stride=4), "'mask_stride' has no place .* keypoint"),
        (changed("segmentation", keypoints=POINTS), "'keypoints' has no place .* segmentation"),
        (changed("segmentation", mask_stride=0), "'mask_stride' must be at least 1"),
        (changed("segmentation", mask_stride="4"), "'mask_stride' must be of type int"),
        (changed("keypoint", keypoints=[17]), r"'keypoints': a keypoint schema is .*export the"),
        (changed("keypoint", keypoints=None), "'keypoints': a keypoint schema is"),
        (changed("keypoint", keypoints=POINTS | {"classes": []}), "needs a class with keypoints"),
        (changed("keypoint", keypoints=POINTS | {"trace_alpha": -1}), "trace_alpha must be 0"),
        (changed("keypoint", keypoints=POINTS | {"classes": [ONE] * 5}), "lists 5 classes.* 4 cla"),
        (
            changed("keypoint", keypoints=POINTS | {"classes": [ONE | {"skeleton": [[0, 1]]}]}),
            "skeleton pairs two of 1 keypoints",
        ),
        (
            changed("keypoint", keypoints=POINTS | {"classes": [ONE | {"sigmas": []}]}),
            "1 keypoints need as many sigmas",
        ),
    ],
)
def test_a_document_that_contradicts_itself_names_the_field(text, said):
    with pytest.raises(MetadataError, match=said):
        parse_metadata(text)


def test_a_contradiction_is_never_written():
    with pytest.raises(MetadataError, match="'keypoints' has no place"):
        replace(metadata(), keypoints=SCHEMA)
    with pytest.raises(MetadataError, match="lists 3 classes"):
        metadata(classes=replace(CELLS, names=("a",), category_ids=(1,)), task="keypoint")
