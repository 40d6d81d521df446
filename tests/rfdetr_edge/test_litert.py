import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from graphs import CELLS, metadata, save_detector

from rfdetr_edge import (
    ArtifactError,
    BackendError,
    BackendUnavailable,
    Detector,
    InputError,
    demo,
)
from rfdetr_edge.backends import fitting_tuning, open_session
from rfdetr_edge.tuning import tuning_path

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")
tflite_graphs = pytest.importorskip("tflite_graphs")
save_tflite = tflite_graphs.save_tflite


@pytest.fixture
def artifact(tmp_path):
    return save_tflite(tmp_path / "model.tflite", metadata_json=metadata().to_json())


@pytest.fixture
def expected(tmp_path):
    """What ONNX Runtime makes of an image, with the same weights."""
    return open_session(save_detector(tmp_path / "model.onnx")).run(feeds())


def feeds(seed=0, batch=1):
    """Colours as normalisation leaves them."""
    return {"input": np.random.default_rng(seed).normal(size=(batch, 3, 64, 96)).astype(np.float32)}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("provider", ["xnnpack", "builtin", "reference"])
def test_either_layout_and_any_kernels_give_what_onnx_runtime_gives(
    tmp_path, expected, layout, provider
):
    path = save_tflite(tmp_path / "model.tflite", layout=layout)
    session = open_session(path, provider=provider)
    assert [str(spec) for spec in (*session.inputs, *session.outputs)] == [
        "input float32 (1, 3, 64, 96)",
        "dets float32 (1, 24, 4)",
        "labels float32 (1, 24, 4)",
    ]
    found = session.run(feeds())
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("stored", [np.int8, np.uint8])
def test_quantised_inputs_and_outputs_are_floats_to_the_caller(tmp_path, expected, stored, layout):
    path = save_tflite(tmp_path / "model.tflite", rounded=stored, layout=layout)
    session = open_session(path)
    assert {spec.dtype for spec in (*session.inputs, *session.outputs)} == {np.dtype(np.float32)}
    found = session.run(feeds())
    # half a step of the output, and what the rounded input moves
    np.testing.assert_allclose(found["dets"], expected["dets"], rtol=0, atol=0.5 / 256 + 1e-3)
    np.testing.assert_allclose(found["labels"], expected["labels"], rtol=0, atol=0.05 + 5e-3)
    assert np.ptp(found["dets"]) > 0.01


def test_colours_beyond_a_quantised_input_are_its_limits(tmp_path):
    session = open_session(save_tflite(tmp_path / "model.tflite", rounded=np.int8))
    highest = (127 - tflite_graphs.COLOURS.zero_point) * tflite_graphs.COLOURS.scale
    beyond, limit = (np.full((1, 3, 64, 96), value, np.float32) for value in (1000.0, highest))
    for name, values in session.run({"input": beyond}).items():
        np.testing.assert_array_equal(values, session.run({"input": limit})[name])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_an_open_batch_takes_any_number_of_images(tmp_path, layout):
    session = open_session(save_tflite(tmp_path / "model.tflite", batch=None, layout=layout))
    for batch in (3, 1, 2):
        found = session.run(feeds(batch=batch))
        for index in range(batch):
            alone = session.run({"input": feeds(batch=batch)["input"][index : index + 1]})
            for name, values in alone.items():
                np.testing.assert_allclose(found[name][index], values[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"scores_first": True}, ["labels", "dets"]),
        ({"outputs": ("output_0", "output_1")}, ["output_0", "output_1"]),
        ({"signature": False, "scores_first": True}, ["scores", "boxes"]),
    ],
)
def test_outputs_have_the_names_of_the_signature_in_the_order_of_the_file(tmp_path, options, names):
    session = open_session(save_tflite(tmp_path / "model.tflite", **options))
    found = session.run({session.inputs[0].name: feeds()["input"]})
    assert [spec.name for spec in session.outputs] == [*found] == names


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_bare_file_of_upstream_detects_once_its_class_layout_is_named(tmp_path, layout):
    """No signature, no metadata, scores before boxes: only the last dimensions tell."""
    options = {"slots": 91, "signature": False, "scores_first": True, "layout": layout}
    path = save_tflite(tmp_path / "upstream.tflite", **options)
    with pytest.raises(
        InputError, match=r"no rfdetr-edge metadata, so say what its 91 class slots"
    ):
        Detector(path)
    photo = demo.photo_paths()[0]
    found = Detector(path, class_layout="coco").predict(photo)
    onnx = save_detector(tmp_path / "upstream.onnx", slots=91)
    wanted = Detector(onnx, class_layout="coco").predict(photo)
    assert len(found) == len(wanted) > 0
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-2)
    np.testing.assert_array_equal(found.class_id, wanted.class_id)


@pytest.mark.parametrize("provider", [None, "xnnpack", "XNNPACK"])
def test_xnnpack_is_the_default_and_says_how_many_parts_it_runs(artifact, caplog, provider):
    with caplog.at_level(logging.INFO):
        session = open_session(artifact, provider=provider)
    assert (session.provider, session.partitions) == ("xnnpack", 1)
    assert "of which xnnpack runs 1 parts" in caplog.text


@pytest.mark.parametrize("provider", ["builtin", "reference"])
def test_litert_s_own_kernels_run_without_a_delegate(artifact, provider):
    session = open_session(artifact, provider=provider)
    assert (session.provider, session.partitions) == (provider, 0)


def test_the_reference_kernels_are_others_than_the_built_in_ones(artifact):
    """They add up in another order, so that the last bits differ."""
    builtin, reference = (
        open_session(artifact, provider=provider).run(feeds())
        for provider in ("builtin", "reference")
    )
    assert any((builtin[name] != reference[name]).any() for name in builtin)


def test_an_unknown_provider_is_refused(artifact):
    with pytest.raises(InputError, match=r"'cuda'; there is xnnpack, builtin, reference, and"):
        open_session(artifact, provider="cuda")


@pytest.mark.parametrize("name", ["missing.so", "text.so", "/libm.so.6.so"])
def test_a_delegate_library_that_cannot_be_used_is_named(artifact, tmp_path, name):
    (tmp_path / "text.so").write_text("no library")
    library = str(tmp_path / name)
    with pytest.raises(BackendUnavailable, match=f"delegate {library} cannot be used: .*xnnpack"):
        open_session(artifact, provider=library)


def test_a_library_that_is_no_delegate_is_named(artifact):
    library = str(next(Path(np.__file__).parent.glob("**/*.so")))
    with pytest.raises(
        BackendUnavailable, match=r"cannot be used: .*tflite_plugin_create_delegate"
    ):
        open_session(artifact, provider=library)


@pytest.mark.parametrize("cut", [0, 1, 100, 1000, -1])
def test_a_truncated_file_is_an_artifact_error(tmp_path, cut):
    path = save_tflite(tmp_path / "model.tflite")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=r"model\.tflite is no TFLite file"):
        open_session(path)


def test_a_text_is_an_artifact_error(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(ArtifactError, match="is no TFLite file"):
        open_session(path)


@pytest.mark.parametrize("operator", ["SomebodysOwn", "FlexErf"])
@pytest.mark.parametrize("provider", ["xnnpack", "builtin", "reference"])
def test_custom_and_flex_operators_are_named_with_the_remedy(tmp_path, operator, provider):
    path = save_tflite(tmp_path / "model.tflite", last=operator)
    named = operator.replace("FlexErf", "Flex")  # the reference kernels do not say which
    with pytest.raises(BackendError, match=rf"(?s)cannot run {path} .*{named}.*built-in op"):
        open_session(path, provider=provider)


def test_threads_do_not_change_results(artifact):
    one, two = (open_session(artifact, threads=threads).run(feeds()) for threads in (1, 2))
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-6)


def test_threads_that_share_a_session_get_what_they_asked_for(tmp_path):
    session = open_session(save_tflite(tmp_path / "model.tflite", batch=None), threads=1)
    expected = {seed: session.run(feeds(seed, batch=1 + seed % 3)) for seed in range(6)}
    wrong = []

    def work(seed):
        for _ in range(50):
            found = session.run(feeds(seed, batch=1 + seed % 3))
            same = all(np.array_equal(found[name], expected[seed][name]) for name in found)
            wrong.extend([] if same else [seed])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tuning_of_onnx_runtime_is_not_used(artifact):
    tuning_path(artifact).write_text("{}")
    assert fitting_tuning(artifact) is None


def test_the_detector_finds_the_classes_of_the_metadata(artifact):
    with Detector(artifact) as detector:
        found = detector.predict(demo.photo_paths()[0], threshold=0.2)
    assert len(found) > 0
    assert set(found.class_name) <= set(CELLS.names)
