"""The schema says which points each class has, and survives the way through JSON."""

import json

import pytest

from rfdetr_edge.errors import InputError
from rfdetr_edge.keypoint_schema import (
    PERSON,
    ClassKeypoints,
    KeypointSchema,
    class_keypoints,
    numbered_schema,
    parse_schema,
)

ENDS = class_keypoints(["left_end", "right_end", "middle"], skeleton=((0, 2), (2, 1)))


@pytest.mark.parametrize(
    "schema",
    [
        KeypointSchema((PERSON,)),
        KeypointSchema((ClassKeypoints(), PERSON), trace_alpha=0.0),
        KeypointSchema((ENDS, ClassKeypoints(), class_keypoints(["tip"], sigmas=[0.1]))),
    ],
    ids=["active-first", "background-first", "several"],
)
def test_json_keeps_everything(schema):
    assert parse_schema(json.loads(json.dumps(schema.to_dict()))) == schema


def test_counts_are_by_slot():
    schema = KeypointSchema((ClassKeypoints(), PERSON, ENDS))
    assert schema.counts == (0, 17, 3)
    assert schema.widest == 17


def test_a_person_is_coco_s():
    assert PERSON.names[5:7] == ("left_shoulder", "right_shoulder")
    assert len(PERSON.flip_pairs) == 8
    assert len(PERSON.skeleton) == 19
    assert (PERSON.sigmas[0], PERSON.sigmas[-1]) == (0.026, 0.089)


def test_left_and_right_are_a_flip_pair_and_nothing_else_is():
    assert ENDS.flip_pairs == ((0, 1),)
    assert class_keypoints(["left_end", "tip"]).flip_pairs == ()
    assert class_keypoints(["leftover", "rightover"]).flip_pairs == ((0, 1),)


def test_points_that_nobody_named_are_numbered_and_17_are_a_person_s():
    person, empty, part = numbered_schema([17, 0, 2]).classes
    assert person == PERSON
    assert empty == ClassKeypoints()
    assert part.names == ("point 0", "point 1")
    assert part.sigmas == (0.05, 0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigmas": (0.05,)}, "3 keypoints need as many sigmas"),
        ({"sigmas": (0.05, 0.05, 0.0)}, "sigmas above 0"),
        ({"sigmas": (0.05, 0.05, float("inf"))}, "sigmas above 0"),
        ({"skeleton": ((0, 3),)}, r"skeleton pairs two of 3 keypoints, from 0; not \(0, 3\)"),
        ({"skeleton": ((1, 1),)}, "skeleton pairs two"),
        ({"flip_pairs": ((-1, 0),)}, "flip_pairs pairs two"),
        ({"flip_pairs": ((0, 1), (1, 2))}, "flip_pairs names a keypoint twice"),
    ],
)
def test_points_that_contradict_each_other_are_refused(values, message):
    names = ("a", "b", "c")
    with pytest.raises(InputError, match=message):
        ClassKeypoints(**{"names": names, "sigmas": (0.05,) * 3, **values})


def test_a_schema_without_points_is_refused():
    with pytest.raises(InputError, match="needs a class with keypoints"):
        KeypointSchema((ClassKeypoints(),))
    with pytest.raises(InputError, match="trace_alpha must be 0 or more, not nan"):
        KeypointSchema((PERSON,), trace_alpha=float("nan"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["classes"], None),
        (["classes"], "person"),
        (["trace_alpha"], "0.2"),
        (["trace_alpha"], True),
        (["classes", 0], []),
        (["classes", 0, "names"], "nose"),
        (["classes", 0, "names", 0], 1),
        (["classes", 0, "sigmas", 0], "0.1"),
        (["classes", 0, "sigmas", 0], None),
        (["classes", 0, "skeleton", 0], [0]),
        (["classes", 0, "skeleton", 0], [0, 1, 2]),
        (["classes", 0, "skeleton", 0], 3),
        (["classes", 0, "skeleton", 0, 0], 0.5),
        (["classes", 0, "flip_pairs"], {}),
        (["classes", 0, "names"], "seventeen letters"),
    ],
    ids=lambda part: json.dumps(part),
)
def test_a_malformed_document_is_one_error(path, value):
    document = json.loads(json.dumps(KeypointSchema((PERSON,)).to_dict()))
    *way, last = path
    place = document
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(InputError):
        parse_schema(document)


@pytest.mark.parametrize("document", [None, [], "x", {}])
def test_what_is_no_schema_at_all_is_one_error(document):
    with pytest.raises(InputError, match="a keypoint schema is"):
        parse_schema(document)
