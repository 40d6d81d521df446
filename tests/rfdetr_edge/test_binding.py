"""What `Detector` accepts as an artifact, and what it makes of files without metadata."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import CELLS, metadata, save_classifier, save_detector

from rfdetr_edge import ArtifactError, BackendError, Detector, InputError, MetadataError
from rfdetr_edge.backends import TensorSpec, open_session
from rfdetr_edge.backends.fake import FakeSession
from rfdetr_edge.classes import COCO_NAMES, coco_classes
from rfdetr_edge.keypoint_schema import numbered_schema

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

PHOTO = Path(__file__).parents[2] / "rfdetr_edge/demo/cells/BloodImage_00007.jpg"


@pytest.fixture
def artifact(tmp_path):
    return save_detector(tmp_path / "model.onnx", batch=None, metadata_json=metadata().to_json())


def test_an_onnx_that_is_no_detector_lists_its_outputs(tmp_path):
    with pytest.raises(ArtifactError, match=r"no RF-DETR detector; it gives scores float32 \(1, 3"):
        Detector(save_classifier(tmp_path / "other.onnx"), class_layout="coco")


def test_outputs_of_other_names_are_bound_by_shape_when_only_one_reading_is_possible(tmp_path):
    options = {"slots": 91, "outputs": ("pred_boxes", "pred_logits")}
    path = save_detector(tmp_path / "named.onnx", **options)
    same = save_detector(tmp_path / "usual.onnx", slots=91)
    detections = Detector(path, class_layout="coco").predict(PHOTO)
    expected = Detector(same, class_layout="coco").predict(PHOTO)
    assert len(expected) > 0
    np.testing.assert_array_equal(detections.xyxy, expected.xyxy)
    np.testing.assert_array_equal(detections.class_id, expected.class_id)


def test_boxes_and_scores_of_the_same_shape_are_not_guessed(tmp_path):
    path = save_detector(tmp_path / "trap.onnx", slots=4, outputs=("boxes", "scores"))
    with pytest.raises(ArtifactError, match="cannot be told apart: name the outputs dets and lab"):
        Detector(path, class_layout="background-last")


def test_a_file_without_metadata_needs_its_class_layout(tmp_path):
    path = save_detector(tmp_path / "upstream.onnx", slots=91)
    with pytest.raises(InputError, match=r"91 class slots .*coco for published.*background-last"):
        Detector(path)
    detector = Detector(path, class_layout="coco")
    assert detector.metadata.classes == coco_classes()
    assert detector.metadata.num_select == 24
    assert detector.metadata.input.antialias


@pytest.mark.parametrize("open_shapes", [False, True])
@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("contiguous", ("class 0", "class 1", "class 2")),
        ("background-last", ("class 0", "class 1", "__background__")),
        ("background-first", ("__background__", "class 1", "class 2")),
    ],
)
def test_classes_without_names_are_called_after_their_slot(tmp_path, layout, names, open_shapes):
    path = save_detector(tmp_path / "model.onnx", slots=3, open_shapes=open_shapes)
    assert Detector(path, class_layout=layout).metadata.classes.names == names


def test_class_names_rename_the_foreground(artifact, tmp_path):
    renamed = Detector(artifact, class_names=["red", "white", "plate"]).metadata.classes
    assert renamed == replace(CELLS, names=("red", "white", "plate", "__background__"))
    coco = save_detector(tmp_path / "coco.onnx", slots=91)
    upper = [name.upper() for name in COCO_NAMES]
    assert (
        Detector(coco, class_layout="coco", class_names=upper).metadata.classes.names[1] == "PERSON"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, "2 class_names, but the artifact has 3 classes"),
        ({"class_names": "abc"}, "must be a list"),
        ({"class_layout": "coco"}, "contradicts the artifact.*background-last"),
        ({"class_layout": "nonsense"}, "contradicts the artifact"),
    ],
)
def test_names_and_layouts_that_do_not_fit_are_refused(artifact, options, message):
    with pytest.raises(InputError, match=message):
        Detector(artifact, **options)


@pytest.mark.parametrize(
    ("layout", "message"), [("coco", "coco has 91 slots, .* has 4"), ("nonsense", "unknown class")]
)
def test_layouts_that_do_not_fit_a_bare_file_are_refused(tmp_path, layout, message):
    with pytest.raises(InputError, match=message):
        Detector(save_detector(tmp_path / "bare.onnx"), class_layout=layout)


def test_outputs_that_only_share_the_names_are_no_detector(tmp_path):
    """Other toolboxes call (batch, boxes, 5) with scores `dets`."""
    dets = TensorSpec("dets", (1, 100, 5), np.dtype(np.float32))
    labels = TensorSpec("labels", (1, 100), np.dtype(np.int64))
    image = TensorSpec("input", (1, 3, 64, 64), np.dtype(np.float32))
    session = FakeSession(dict, (image,), (dets, labels))
    with pytest.raises(ArtifactError, match=r"dets float32 \(1, 100, 5\), labels int64"):
        Detector.from_session(session, class_layout="contiguous")
    with pytest.raises(BackendError, match="closed"):  # nothing is left open
        session.run({"input": np.zeros((1, 3, 64, 64), np.float32)})


def test_an_input_that_is_no_image_is_no_detector(artifact):
    bare = open_session(artifact)
    text = TensorSpec("tokens", (1, 512), np.dtype(np.int64))
    with pytest.raises(ArtifactError, match=r"takes tokens int64 \(1, 512\)"):
        Detector.from_session(FakeSession(dict, (text,), bare.outputs))


def test_a_bare_file_with_an_open_resolution_is_refused(artifact):
    image = TensorSpec("input", (None, 3, None, None), np.dtype(np.float32))
    session = FakeSession(dict, (image,), open_session(artifact).outputs)
    with pytest.raises(ArtifactError, match="leaves its resolution open"):
        Detector.from_session(session, class_layout="background-last")


def newer(document):
    return json.dumps({**json.loads(document.to_json()), "schema": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (newer(metadata()), "schema 2.*update rfdetr-edge"),
        ("{", "no JSON"),
        (metadata(resolution=(64, 64)).to_json(), r"resolution \(64, 64\), the graph takes"),
        (metadata(classes=coco_classes()).to_json(), "91 class slots, the graph scores 4"),
    ],
)
def test_metadata_that_is_broken_or_contradicts_the_graph_is_refused(tmp_path, text, message):
    path = save_detector(tmp_path / "model.onnx", metadata_json=text)
    with pytest.raises(MetadataError, match=message):
        Detector(path)


NAMES = {"segmentation": "masks", "keypoint": "keypoints"}


@pytest.mark.parametrize("open_shapes", [False, True])
@pytest.mark.parametrize("task", ["segmentation", "keypoint"])
def test_masks_and_keypoints_are_bound_by_the_metadata(tmp_path, task, open_shapes):
    document = metadata(task=task)
    path = save_detector(
        tmp_path / "model.onnx",
        open_shapes=open_shapes,
        metadata_json=document.to_json(),
        **{NAMES[task]: NAMES[task]},
    )
    detector = Detector(path)
    assert detector.metadata == document
    found = detector.predict(PHOTO, threshold=0.2)
    assert len(found) > 0
    assert (found.masks is not None, found.schema is not None) == (
        task == "segmentation",
        task == "keypoint",
    )


@pytest.mark.parametrize("names", [("dets", "labels", "masks"), ("boxes", "scores", "third")])
def test_a_bare_file_with_masks_is_a_segmentation_model(tmp_path, names):
    bare = save_detector(tmp_path / "bare.onnx", slots=91, outputs=names[:2], masks=names[2])
    document = metadata(coco_classes(), num_select=24, task="segmentation").to_json()
    told = save_detector(tmp_path / "told.onnx", slots=91, masks="masks", metadata_json=document)
    detector = Detector(bare, class_layout="coco")
    assert (detector.metadata.task, detector.metadata.mask_stride) == ("segmentation", 4)
    found, expected = detector.predict(PHOTO), Detector(told).predict(PHOTO)
    assert 0 < found.mask.mean() < 1
    np.testing.assert_array_equal(found.mask, expected.mask)


@pytest.mark.parametrize("name", ["keypoints", "other"])
def test_keypoints_without_metadata_cannot_be_told(tmp_path, name):
    path = save_detector(tmp_path / "bare.onnx", keypoints=name)
    with pytest.raises(ArtifactError, match=r"missing keypoint metadata.*export it again"):
        Detector(path, class_layout="background-last")


@pytest.mark.parametrize("document", [None, metadata(task="segmentation").to_json()])
def test_masks_and_keypoints_in_one_file_are_refused(tmp_path, document):
    path = save_detector(
        tmp_path / "model.onnx", masks="masks", keypoints="keypoints", metadata_json=document
    )
    with pytest.raises(ArtifactError, match=r"masks or keypoints, this one gives both: .*masks fl"):
        Detector(path, class_layout="background-last")


@pytest.mark.parametrize("told", [True, False])
def test_masks_of_another_stride_are_refused(tmp_path, told):
    document = metadata(task="segmentation").to_json() if told else None
    path = save_detector(
        tmp_path / "model.onnx", masks="masks", mask_stride=8, metadata_json=document
    )
    said = r"mask stride 4 at resolution 64x96 .*queries, 16, 24\), .*masks float32 \(1, 24, 8, 12"
    with pytest.raises(MetadataError, match=said):
        Detector(path, class_layout="background-last")


def test_masks_of_another_stride_are_refused_when_only_a_run_tells(tmp_path):
    document = metadata(task="segmentation").to_json()
    path = save_detector(
        tmp_path / "model.onnx",
        open_shapes=True,
        masks="masks",
        mask_stride=8,
        metadata_json=document,
    )
    with pytest.raises(MetadataError, match=r"mask stride 4 .* masks float32 \(1, 24, 8, 12"):
        Detector(path).predict(PHOTO)


def test_a_mask_stride_that_the_graph_has_not_is_refused(tmp_path):
    document = replace(metadata(task="segmentation"), mask_stride=2).to_json()
    path = save_detector(tmp_path / "model.onnx", masks="masks", metadata_json=document)
    with pytest.raises(MetadataError, match=r"mask stride 2 .* 32, 48"):
        Detector(path)


def test_a_keypoint_schema_that_the_graph_has_not_is_refused(tmp_path):
    document = replace(metadata(task="keypoint"), keypoints=numbered_schema([17])).to_json()
    path = save_detector(tmp_path / "model.onnx", keypoints="keypoints", metadata_json=document)
    with pytest.raises(MetadataError, match=r"\(17,\) keypoints a class .* 17, 8\), .*24, 9, 8"):
        Detector(path)


@pytest.mark.parametrize(
    ("task", "extra", "said"),
    [
        ("segmentation", {}, "task segmentation, but the graph gives no masks"),
        ("keypoint", {}, "task keypoint, but the graph gives no keypoints"),
        ("detection", {"masks": "masks"}, "task detection, but the graph gives masks float32"),
        ("detection", {"keypoints": "keypoints"}, "task detection, but the graph gives keypoints"),
    ],
)
def test_a_task_that_the_graph_does_not_serve_is_refused(tmp_path, task, extra, said):
    document = metadata(task=task).to_json()
    path = save_detector(tmp_path / "model.onnx", metadata_json=document, **extra)
    with pytest.raises(MetadataError, match=said):
        Detector(path)
