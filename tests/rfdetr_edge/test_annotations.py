"""Annotation files: every fault is found, and named by the line that it is on."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfdetr_edge import InputError
from rfdetr_edge.annotations import Fault, for_task, read_annotations, scan_annotations

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


TRIANGLE = [1, 2, 9.5, 2, 5, 8]


def _with_sizes(text: str) -> str:
    """With images of 12 x 16 pixels (height x width)."""
    return text.replace('.jpg"', '.jpg", "height": 12, "width": 16')


@pytest.mark.parametrize("segmentation", [None, [TRIANGLE[:4]], {"size": [16, 12], "counts": "0"}])
def test_an_odd_segmentation_is_a_fault_for_masks_only(tmp_path, segmentation):
    rows = annotation(segmentation=[TRIANGLE]), annotation(5, segmentation=segmentation)
    path = written(tmp_path, _with_sizes(lines_of(*rows)))
    for task in ("detection", "keypoint"):
        assert len(read_annotations(path, task)["annotations"]) == 2
    (fault,) = for_task(scan_annotations(path), "segmentation").faults
    assert (fault.line, fault.fatal) == (5, True)
    with pytest.raises(InputError, match=r"annotations\.json:5: "):
        read_annotations(path, "segmentation")


@pytest.mark.parametrize("height", [None, "12", 12.5, 0])
def test_an_image_without_a_size_is_a_fault_for_masks_only(tmp_path, height):
    text = _with_sizes(lines_of(annotation(segmentation=[TRIANGLE])))
    path = written(tmp_path, text.replace('"height": 12', f'"height": {json.dumps(height)}', 1))
    assert len(read_annotations(path)["annotations"]) == 1
    with pytest.raises(InputError, match=r"json:1: a\.jpg needs a width and height in whole pix"):
        read_annotations(path, "segmentation")


def test_odd_points_of_a_category_are_a_fault_for_keypoints_only(tmp_path):
    category = {"id": 1, "name": "cell", "keypoints": ["left", "right"], "skeleton": [[0, 1]]}
    path = written(tmp_path, lines_of(annotation(), categories=[category]))
    assert len(read_annotations(path)["annotations"]) == 1
    with pytest.raises(InputError, match=r"annotations\.json:2: skeleton of category 1 'cell' mu"):
        read_annotations(path, "keypoint")


def test_a_keypoint_of_an_unknown_mark_is_a_fault_for_keypoints_only(tmp_path):
    category = {"id": 1, "name": "cell", "keypoints": ["left", "right"]}
    rows = annotation(keypoints=[1, 2, 2, 3, 4, 1]), annotation(5, keypoints=[1, 2, 2, 3, 4, 3])
    path = written(tmp_path, lines_of(*rows, categories=[category]))
    assert len(read_annotations(path)["annotations"]) == 2
    with pytest.raises(InputError, match=r":5: keypoints of annotation 5 must be marked 0 .* 3\]"):
        read_annotations(path, "keypoint")


def test_an_annotation_that_says_nothing_of_its_points_has_none_labelled(tmp_path):
    category = {"id": 1, "name": "cell", "keypoints": ["left", "right"]}
    rows = annotation(1, keypoints=[1, 2, 2, 3, 4, 0]), annotation(2), annotation(3, keypoints=None)
    path = written(tmp_path, lines_of(*rows, categories=[category]))
    found = read_annotations(path, "keypoint")["annotations"]
    assert [row["keypoints"] for row in found] == [[1, 2, 2, 3, 4, 0], [0] * 6, [0] * 6]
    assert [row["num_keypoints"] for row in found] == [1, 0, 0]
