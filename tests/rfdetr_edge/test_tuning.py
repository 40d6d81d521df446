import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import metadata, onnx, save_detector

from rfdetr_edge import ArtifactError, Detector, InputError, MetadataError, demo
from rfdetr_edge.backends import fitting_tuning, open_session
from rfdetr_edge.cli import main
from rfdetr_edge.machine import this_machine
from rfdetr_edge.metadata import METADATA_KEY
from rfdetr_edge.tuning import (
    Stamp,
    Tuned,
    Tuning,
    fitting,
    optimized_path,
    read_tuned,
    tuning_path,
    write_tuned,
)

ort = pytest.importorskip("onnxruntime")
onnxrt = pytest.importorskip("rfdetr_edge.backends.onnxrt")

LEVELS = {
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL: "none",
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC: "basic",
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED: "extended",
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL: "all",
}
SETTINGS = Tuning(threads=1, spinning=False, arena=False, optimization="extended")


@pytest.fixture
def artifact(tmp_path):
    return save_detector(tmp_path / "model.onnx", batch=None, metadata_json=metadata().to_json())


def document(artifact, tuning, saved=None):
    """What fits the artifact on this machine."""
    stamp = None if saved is None else Stamp.of(saved)
    machine = this_machine()
    return Tuned(tuning, machine, ort.__version__, Stamp.of(artifact), stamp, {"ratio": 0.9})


def save_copy(artifact):
    """The model saved as `tune` does, and a tuning that names it."""
    saved = optimized_path(artifact)
    onnxrt.save_optimized(artifact, "all", saved)
    tuning = Tuning(threads=1, optimized=saved.name)
    write_tuned(artifact, document(artifact, tuning, saved))
    return saved, tuning


@pytest.fixture
def loaded(monkeypatch):
    """The files that ONNX Runtime loaded, with their options."""
    calls = []
    load = ort.InferenceSession

    def spy(path, options, **others):
        calls.append((Path(path), options))
        return load(path, options, **others)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    return calls


def settings_of(options):
    return Tuning(
        threads=options.intra_op_num_threads or None,
        spinning=options.get_session_config_entry("session.intra_op.allow_spinning") == "1",
        arena=options.enable_cpu_mem_arena,
        optimization=LEVELS[options.graph_optimization_level],
    )


@pytest.mark.parametrize("tuning", [Tuning(), SETTINGS, Tuning(threads=2, optimization="basic")])
def test_a_session_is_opened_with_the_settings_of_its_tuning(artifact, loaded, tuning):
    open_session(artifact, tuning=tuning).close()
    assert [(path, settings_of(options)) for path, options in loaded] == [(artifact, tuning)]
    assert [o.get_session_config_entry("session.force_spinning_stop") for _, o in loaded] == ["1"]


def test_a_tuning_without_arguments_is_the_default_of_the_library(artifact, loaded):
    open_session(artifact).close()
    ours, theirs = loaded[0][1], ort.SessionOptions()
    assert ours.intra_op_num_threads == theirs.intra_op_num_threads
    assert ours.enable_cpu_mem_arena == theirs.enable_cpu_mem_arena
    assert ours.graph_optimization_level == theirs.graph_optimization_level


def test_threads_overrule_those_of_a_tuning(artifact, loaded):
    open_session(artifact, threads=2, tuning=SETTINGS).close()
    assert settings_of(loaded[0][1]) == replace(SETTINGS, threads=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threads": 0}, "threads must be 1 to 1024"), ({"optimization": "most"}, "not 'most'")],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Tuning(**settings)


def test_what_is_written_is_read_back(artifact):
    tuned = document(artifact, SETTINGS)
    write_tuned(artifact, tuned)
    assert read_tuned(artifact) == tuned
    assert [path.name for path in artifact.parent.iterdir() if path != artifact] == [
        "model.onnx.tuned.json"
    ]


@pytest.mark.parametrize("options", [{}, {"provider": "cpu"}, {"provider": "CPU"}])
def test_the_detector_uses_a_tuning_that_fits(artifact, loaded, caplog, options):
    write_tuned(artifact, document(artifact, SETTINGS))
    with caplog.at_level(logging.INFO), Detector(artifact, **options):
        pass
    assert [settings_of(found) for _, found in loaded] == [SETTINGS]
    assert caplog.messages == [
        f"{tuning_path(artifact)} is used: threads 1, no spinning, no arena, optimization extended"
    ]


def test_threads_named_by_the_user_leave_a_tuning_out(artifact, loaded):
    tuning_path(artifact).write_text("not even read")
    Detector(artifact, threads=2).close()
    assert [settings_of(options) for _, options in loaded] == [Tuning(threads=2)]


def test_a_tuning_is_for_the_cpu_alone(artifact, monkeypatch):
    write_tuned(artifact, document(artifact, SETTINGS))
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    assert fitting_tuning(artifact) is None
    assert fitting_tuning(artifact, provider="cuda") is None
    assert fitting_tuning(artifact, provider="cpu") == SETTINGS


def test_an_artifact_that_was_not_tuned_has_none(artifact):
    assert fitting_tuning(artifact) is None
    for path in ("", ".", "nowhere.onnx", "model.engine"):
        assert fitting_tuning(path) is None


HERE = this_machine()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"machine": replace(HERE, cpu="Cortex-A78AE")}, "measured on Cortex-A78AE"),
        ({"machine": replace(HERE, vector=("avx512f",))}, r"measured on .* \(avx512f\)"),
        ({"machine": replace(HERE, cores=HERE.cores + 1)}, f"{HERE.cores + 1} cores, and this is"),
        ({"onnxruntime": "1.2.3"}, "measured with onnxruntime 1.2.3, and this is"),
        ({"artifact": Stamp(1, 2, "3")}, "model.onnx is another file"),
        ({"optimized": Stamp(1, 2, "3")}, "model.tuned.onnx is gone, or another file"),
    ],
    ids=["cpu", "instructions", "cores", "version", "artifact", "saved model"],
)
def test_what_does_not_fit_is_not_used_and_says_why(artifact, loaded, caplog, changes, reason):
    saved, tuning = save_copy(artifact)
    loaded.clear()
    write_tuned(artifact, replace(document(artifact, tuning, saved), **changes))
    with caplog.at_level(logging.INFO), Detector(artifact):
        pass
    assert [(path, settings_of(options)) for path, options in loaded] == [(artifact, Tuning())]
    (line,) = caplog.records
    assert line.levelname == "INFO"
    assert line.message.startswith(f"{tuning_path(artifact)} is not used: ")
    assert line.message.endswith(f"; run `rfdetr-edge tune {artifact}` again")
    assert re.search(reason, line.message)


def test_a_saved_model_that_is_gone_is_not_used(artifact, caplog):
    saved, _ = save_copy(artifact)
    saved.unlink()
    with caplog.at_level(logging.INFO):
        assert fitting(artifact, ort.__version__) is None
    assert "model.tuned.onnx is gone" in caplog.text


def test_a_copy_of_the_files_fits_though_their_times_differ(artifact, tmp_path):
    saved, tuning = save_copy(artifact)
    folder = tmp_path / "device"
    folder.mkdir()
    for path in (artifact, saved, tuning_path(artifact)):
        os.utime(shutil.copy(path, folder), ns=(0, 0))
    assert fitting(folder / artifact.name, ort.__version__) == tuning
    other = (folder / artifact.name).read_bytes()[:-1] + b"!"
    (folder / artifact.name).write_bytes(other)
    assert fitting(folder / artifact.name, ort.__version__) is None


def test_a_file_of_the_same_size_and_time_is_not_read_again(artifact):
    """The price of a start that is no slower: see Stamp.fits."""
    stamp = Stamp.of(artifact)
    artifact.write_bytes(bytes(stamp.bytes))
    assert not stamp.fits(artifact)
    os.utime(artifact, ns=(0, stamp.mtime_ns))
    assert stamp.fits(artifact)


def damage(field, value, *, within=None):
    def change(found):
        (found if within is None else found[within])[field] = value
        return json.dumps(found)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: json.dumps(found)[:-20], "Expecting|Unterminated|delimiter"),
        (lambda found: "[" * 100_000, "recursion"),
        (lambda found: "[1]", "it is no JSON object"),
        (damage("schema", 2), "it has schema 2, and this rfdetr-edge reads 1"),
        (damage("schema", True), "field 'schema' cannot be True"),
        (damage("machine", None), "field 'machine' cannot be None"),
        (damage("cores", "2", within="machine"), "field 'cores' cannot be '2'"),
        (damage("threads", 0, within="tuning"), "threads must be 1 to 1024"),
        (damage("threads", True, within="tuning"), "field 'threads' cannot be True"),
        (damage("spinning", 1, within="tuning"), "field 'spinning' cannot be 1"),
        (damage("optimization", "most", within="tuning"), "not 'most'"),
        (damage("optimized", "../model.onnx", within="tuning"), "must name a file beside"),
        (damage("optimized", None, within="tuning"), "contradicts itself"),
        (damage("optimized", None), "contradicts itself"),
        (damage("sha256", 7, within="artifact"), "field 'sha256' cannot be 7"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_remedy(artifact, change, message):
    save_copy(artifact)
    path = tuning_path(artifact)
    path.write_text(change(json.loads(path.read_text())))
    remedy = re.escape(f"run `rfdetr-edge tune {artifact}` again, or delete it")
    with pytest.raises(MetadataError, match=f"{re.escape(str(path))} is damaged .*{message}.*"):
        Detector(artifact)
    with pytest.raises(MetadataError, match=remedy):
        fitting_tuning(artifact)


def test_bytes_that_are_no_text_are_a_damaged_file(artifact):
    tuning_path(artifact).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MetadataError, match="is damaged"):
        fitting_tuning(artifact)


def test_a_saved_model_is_loaded_as_it_is_and_finds_the_same(tmp_path, loaded):
    artifact = Path(shutil.copy(demo.model_path(), tmp_path / "tiny.onnx"))
    with Detector(artifact) as detector:
        expected = detector.predict(demo.photo_paths())
        described = detector.metadata
    saved, tuning = save_copy(artifact)
    loaded.clear()
    with Detector(artifact) as detector:
        found = detector.predict(demo.photo_paths())
        assert detector.metadata == described
    assert [(path, settings_of(options)) for path, options in loaded] == [
        (saved, replace(tuning, optimized=None, optimization="none"))
    ]
    for one, other in zip(expected, found, strict=True):
        assert len(one) > 5
        np.testing.assert_array_equal(one.class_id, other.class_id)
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)
        np.testing.assert_allclose(one.xyxy, other.xyxy, atol=1e-2)


def test_a_saved_model_says_what_it_is_and_is_no_artifact(artifact, capsys):
    saved, _ = save_copy(artifact)
    said = rf"model\.tuned\.onnx is the copy of model\.onnx .* {ort.__version__} on .*alone"
    for opened in (open_session, Detector):
        with pytest.raises(ArtifactError, match=said):
            opened(saved)
    assert main(["info", str(saved)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
    assert "open the artifact itself" in line
    assert main(["info", str(artifact)]) == 0


def test_the_mark_of_a_saved_model_is_metadata_like_any_other(artifact):
    model = onnx.load(save_copy(artifact)[0])
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries[METADATA_KEY] == metadata().to_json()
    assert entries["rfdetr_edge_tuned"].startswith("the copy of model.onnx that is for onnxruntime")


@pytest.mark.parametrize("name", ["m.onnx", f"{'long' * 50}.onnx"])
def test_the_mark_holds_names_of_any_length(tmp_path, name):
    artifact = save_detector(tmp_path / name, metadata_json=metadata().to_json())
    saved, _ = save_copy(artifact)
    with pytest.raises(ArtifactError, match=f"the copy of {re.escape(name)} that is"):
        open_session(saved)
