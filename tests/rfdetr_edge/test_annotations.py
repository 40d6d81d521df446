"""Annotation files: every fault is found, and named by the line that it is on."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfdetr_edge import InputError
from rfdetr_edge.annotations import Fault, read_annotations, scan_annotations

BOX = [10, 20, 30, 40]


def written(folder: Path, text: str) -> Path:
    path = folder / "annotations.json"
    path.write_text(text, encoding="utf-8")
    return path


def lines_of(*annotations: object, categories: object = None) -> str:
    """A file with an annotation a line, the first on line 4."""
    return "\n".join(
        [
            '{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],',
            f' "categories": {json.dumps(categories or [{"id": 1, "name": "cell"}])},',
            ' "annotations": [',
            ",\n".join(json.dumps(annotation) for annotation in annotations),
            "]}",
        ]
    )


def annotation(number: int = 1, **changes: object) -> dict[str, object]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": BOX, **changes}


def test_a_sound_file_is_read_and_completed(tmp_path):
    crowd = annotation(2, iscrowd=1, area=7.5)
    document = read_annotations(written(tmp_path, lines_of(annotation(), crowd)))
    assert document["annotations"] == [annotation(area=1200, iscrowd=0), crowd]
    assert [image["id"] for image in document["images"]] == [1, 2]


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = written(tmp_path, "\ufeff" + lines_of(annotation()))
    assert len(read_annotations(path)["annotations"]) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bbox": [1, 2, 3]}, r"bbox of annotation 5 must be \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, math.nan]}, "bbox of annotation 5"),
        ({"bbox": [1, 2, 3, math.inf]}, "bbox of annotation 5"),
        ({"bbox": [1, 2, 3, 10**400]}, "bbox of annotation 5"),
        ({"bbox": [1, 2, 3, "4"]}, "bbox of annotation 5"),
        ({"bbox": None}, "'bbox' of type list"),
        ({"id": "5"}, "'id' of type int"),
        ({"image_id": 77}, "annotation 5 has image_id 77, which 'images' does not list"),
        ({"category_id": 9}, "annotation 5 has category_id 9, which 'categories' does not list"),
        ({"id": 1}, "id 1 is already that of another entry of 'annotations'"),
        ({"iscrowd": "no"}, "iscrowd of 0 or 1"),
        ({"area": None}, "area that is a number, .* not None"),
        ({"area": math.inf}, "area that is a number, .* not inf"),
        ({"keypoints": [1, 2, 2]}, "annotation 5 has 3 keypoint numbers; .* 2 keypoints, .* 6"),
        ({"keypoints": [1, 2, 2, 4, 5, "6"]}, "keypoints of annotation 5 must be numbers"),
        ({"keypoints": 6}, "keypoints of annotation 5 and of its category must be lists"),
    ],
)
def test_a_malformed_annotation_is_named_by_its_line(tmp_path, wrong, message):
    category = {"id": 1, "name": "cell", "keypoints": ["left", "right"]}
    text = lines_of(
        annotation(), annotation(5, **wrong), annotation(6, image_id=2), categories=[category]
    )
    file = scan_annotations(written(tmp_path, text))
    (fault,) = file.faults
    assert (fault.path, fault.line, fault.fatal) == (file.path, 5, True)
    assert not file.sound
    assert [row["id"] for row in file.document["annotations"]] == [1, 6]
    with pytest.raises(InputError, match=rf"annotations\.json:5: .*{message}"):
        read_annotations(file.path)


@pytest.mark.parametrize(
    ("section", "twin", "line", "message"),
    [  # the entry goes to the start of its list: of two with one id the later one is named
        ("images", {"id": 1, "file_name": "c.jpg"}, 4, "id 1 is already that of another entry"),
        ("images", {"id": 3}, 3, "'file_name' of type str"),
        ("images", 3, 3, "every entry of 'images' needs 'id'"),
        ("categories", {"id": 1, "name": "nucleus"}, 5, "id 1 is already that of another entry"),
        ("categories", {"id": 2, "name": 2}, 4, "'name' of type str"),
    ],
)
def test_a_malformed_image_or_category_is_named(tmp_path, section, twin, line, message):
    start = f'"{section}": ['
    text = lines_of(annotation()).replace(start, f"{start}\n\n{json.dumps(twin)},\n")
    (fault,) = scan_annotations(written(tmp_path, text)).faults
    assert message in fault.message
    assert fault.line == line


def test_all_faults_of_a_file_are_found(tmp_path):
    wrong = [annotation(1), annotation(1), annotation(2, bbox=[]), annotation(3, image_id=9)]
    faults = scan_annotations(written(tmp_path, lines_of(*wrong))).faults
    assert [fault.line for fault in faults] == [5, 6, 7]
    assert str(faults[0]).startswith(f"{tmp_path / 'annotations.json'}:5: id 1 ")


def test_a_false_count_of_keypoints_is_corrected(tmp_path):
    category = {"id": 1, "name": "cell", "keypoints": ["left", "right"]}
    rows = [
        annotation(1, keypoints=[1, 2, 2, 0, 0, 0], num_keypoints=1),
        annotation(2, keypoints=[1, 2, 2, 3, 4, 1], num_keypoints=1),
    ]
    file = scan_annotations(written(tmp_path, lines_of(*rows, categories=[category])))
    (fault,) = file.faults
    assert (fault.line, fault.fatal) == (5, False)
    assert "annotation 2 says num_keypoints 1 but marks 2" in fault.message
    assert [row["num_keypoints"] for row in file.document["annotations"]] == [1, 2]
    assert len(read_annotations(file.path)["annotations"]) == 2


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{"images": [\n{"id": 1,\n}]}', 3, "cannot be read as JSON"),
        ("", 1, "cannot be read as JSON"),
        ("[]", 1, "no JSON object"),
        ('{"images": [], "categories": []}', 1, "no list 'annotations'"),
        ('{"images": {}, "categories": [], "annotations": []}', 1, "no list 'images'"),
        ('{"images": ' + "[" * 100_000, 0, "cannot be read"),
        ('{"images": [' + "1" * 5000 + "]}", None, ""),
    ],
)
def test_a_file_that_is_no_annotation_file_is_one_fault(tmp_path, text, line, message):
    file = scan_annotations(written(tmp_path, text))
    (fault,) = file.faults
    assert message in fault.message
    assert line is None or fault.line == line
    assert file.document == {"images": [], "categories": [], "annotations": []}
    with pytest.raises(InputError):
        read_annotations(file.path)


def test_a_missing_or_binary_file_is_one_fault_without_a_line(tmp_path):
    path = tmp_path / "gone.json"
    assert [str(fault) for fault in scan_annotations(path).faults] == [
        f"{path}: no such annotation file"
    ]
    path.write_bytes(b"\x80\x81")
    (fault,) = scan_annotations(path).faults
    assert str(fault).startswith(f"{path}: cannot be read")


def test_of_a_list_given_twice_the_last_is_read_and_named(tmp_path):
    first = lines_of(annotation())
    text = first.replace('{"images"', '{"annotations": [{"id": 9}],\n"images"')
    file = scan_annotations(written(tmp_path, text.replace('"bbox": [', '"bbox": [[],')))
    assert [fault.line for fault in file.faults] == [5]


def test_entries_of_the_document_know_their_place(tmp_path):
    file = scan_annotations(written(tmp_path, lines_of(annotation(), annotation(2))))
    assert [file.place(row) for row in file.document["annotations"]] == [
        (file.path, 4),
        (file.path, 5),
    ]
    assert file.fault(file.document["images"][1], "is green") == Fault(file.path, 1, "is green")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text('[]{},:"\\\n a'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{"\n'), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(values, max_size=6), values, st.sampled_from([None, 0, 2]))
def test_lines_are_found_whatever_the_entries_hold(tmp_path_factory, entries, other, indent):
    sound = [annotation(number, note=value) for number, value in enumerate(entries)]
    document = {
        "info": other,
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": sound,
        "licenses": [other],
        "categories": [{"id": 1, "name": "cell"}],
    }
    text = json.dumps(document, indent=indent)
    file = scan_annotations(written(tmp_path_factory.mktemp("lines"), text))
    assert file.faults == ()
    places = [file.place(row)[1] for row in file.document["annotations"]]
    if indent is None:
        assert places == [1] * len(entries)
    else:
        margin = " " * (2 * indent)
        starts = [f"{margin}{{" for _ in entries]
        assert [text.split("\n")[line - 1] for line in places] == starts
        assert places == sorted(set(places))
        numbers = [text.split("\n")[line].strip() for line in places]
        assert numbers == [f'"id": {row["id"]},' for row in sound]
