"""`.tflite` files of lower precision: made, looked into, judged on both kernels, or refused."""

import errno
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import tflite_graphs
from graphs import metadata

from exporters import precision as exporting
from exporters.calibration import CalibrationSet, calibration_set
from exporters.formats import Choices, format_of, lowering_of
from exporters.lossy import judge
from exporters.precision import export_fp16, export_uncalibrated
from exporters.sensitivity import search
from exporters.trials import Trial, trial
from rfdetr_edge import Detector
from rfdetr_edge.associated import model_of, read_document, sidecar_path, with_document
from rfdetr_edge.backends import open_session
from rfdetr_edge.cli import main
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.images import load_image
from rfdetr_edge.metadata import ModelMetadata

pytest.importorskip("litert_quantizer")
tflite_graph = pytest.importorskip("exporters.tflite.graph")
tflite_constants = pytest.importorskip("exporters.tflite.constants")
tflite_names = pytest.importorskip("exporters.tflite.names")
tflite_activations = pytest.importorskip("exporters.tflite.activations")

LAYERS = {"convolved": "CONV_2D", "raw": "FULLY_CONNECTED", "scores": "FULLY_CONNECTED"}
PRECISIONS = ("fp16", "int8", "int8-dynamic", "int8-weight-only")
SAID = replace(metadata(), provenance=replace(metadata().provenance, converter="by hand 1.0"))
_NO_LIMIT = 100.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 artifact of a convolution and two linear layers."""
    path = tmp_path_factory.mktemp("source") / "m.tflite"
    return tflite_graphs.save_tflite(path, convolved=True, metadata_json=SAID.to_json())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the embedded photos."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in photo_paths():
        (folder / photo.name).symlink_to(photo)
    return folder


@pytest.fixture(scope="module")
def against(source: Path, photos: Path) -> Trial:
    """What the source finds on them."""
    return trial(open_session(source), calibration_set(photos))


def _calibrated(source: Path, images: CalibrationSet) -> Choices:
    return lowering_of(source).calibrated(source, images, SAID.input, "minmax", "cpu")


def _made(source: Path, precision: str, images: CalibrationSet) -> bytes:
    """The source with every layer in a precision."""
    lowering = lowering_of(source)
    if precision == "fp16":
        return lowering.half(source, [])[0]
    if precision == "int8":
        choices = _calibrated(source, images)
    else:
        choices = lowering.uncalibrated(source, precision)
    return choices.build([*choices.blocks])


def _changed(source: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """The source with other weights in a tensor."""
    model = tflite_graphs.tfl.ModelT.InitFromPackedBuf(model_of(source.read_bytes()))
    (tensor,) = (t for t in model.subgraphs[0].tensors if t.name == name.encode())
    buffer = model.buffers[tensor.buffer]
    weights = change(np.array(buffer.data).view(np.float32))
    buffer.data = weights.astype(np.float32).view(np.uint8)
    return tflite_graphs.packed(model)


def _artifact(path: Path, model: bytes, precision: str) -> Path:
    said = replace(SAID, precision=precision)
    path.write_bytes(with_document(model_of(model), said.to_json()))
    return path


def _held(path: Path) -> dict[str, int]:
    kind = format_of(path)
    assert kind is not None
    return dict(kind.inspected(path).weights)


def _said(path: Path) -> ModelMetadata:
    return Detector(path).metadata


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_fp32_artifact_is_lowered_judged_and_handed_out(
    source: Path,
    photos: Path,
    precision: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "o.tflite"
    command = ["export", str(source), "-o", str(output), "--format", "tflite"]
    options = ["--calibration", str(_twice(tmp_path))] if precision == "int8" else []
    options += ["--precision", precision, "--images", str(photos)]
    assert main([*command, *options]) == 0
    said = capsys.readouterr()
    assert "(reference)" in said.out
    assert "it/s" not in said.err
    assert (_said(output).precision, _said(output).provenance.verification) == (precision, "passed")
    assert json.loads(sidecar_path(output).read_text()) == json.loads(read_document(output))
    assert _held(output) == {precision: 9 + 12 + 12}
    report = json.loads((tmp_path / "o.tflite.report.json").read_text())
    assert report["converter"] == "by hand 1.0"
    assert report["counts"]["partitions_on_xnnpack"] >= 1
    in_8_bits = 0 if precision == "fp16" else 3
    assert report["counts"]["layers_in_8_bits"] == in_8_bits
    assert report["counts"]["layers_with_a_step_for_each_channel"] == in_8_bits
    assert [*report["elsewhere"]] == ["reference"]
    page = (tmp_path / "o.tflite.report.html").read_text()
    assert "by hand 1.0" in page
    assert "confident detections, on reference" in page
    if precision == "int8":
        calibration = _said(output).provenance.calibration
        assert calibration is not None
        assert calibration.images == 2 * len(photo_paths())
        assert report["calibration"] == asdict(calibration)
    if precision != "fp16":
        assert {row["layer"]: row["quantized"] for row in report["layers"]} == dict.fromkeys(
            LAYERS, True
        )
    assert main(["verify", str(source), str(output), "--images", str(photos)]) == 0
    assert "keeps to" in capsys.readouterr().out


def test_calibration_search_and_gate_show_how_far_they_are(
    source: Path, photos: Path, tmp_path: Path, terminal: io.StringIO
) -> None:
    command = ["export", str(source), "-o", str(tmp_path / "o.tflite"), "--format", "tflite"]
    options = ["--precision", "int8", "--calibration", str(_twice(tmp_path))]
    assert main([*command, *options, "--images", str(photos)]) == 0
    shown = terminal.getvalue()
    for label, steps in {
        "calibration: ranges": 3,
        "search: blocks": 3,
        "gate on xnnpack": 3,
        "gate on reference": 3,
    }.items():
        assert re.search(rf"{label} \[#+\] {steps}/{steps} ", shown)
    assert shown.endswith("\r\x1b[K")


def _twice(folder: Path) -> Path:
    """Each photo twice, so that both halves of a calibration hold all of them."""
    images = [load_image(path, upright=False) for path in photo_paths() for _ in range(2)]
    np.save(folder / "calibration.npy", np.stack(images))
    return folder / "calibration.npy"


def _layer_kinds(model: bytes) -> dict[str, str]:
    return {
        product.name: str(product.weights.dtype)
        for product in tflite_graph.products(model_of(model))
    }


@pytest.mark.parametrize("precision", PRECISIONS[1:])
@pytest.mark.parametrize("chosen", [["raw"], ["convolved", "scores"], []])
def test_only_the_chosen_layers_are_quantised(
    source: Path, photos: Path, precision: str, chosen: Collection[str]
) -> None:
    if precision == "int8":
        choices = _calibrated(source, calibration_set(photos))
    else:
        choices = lowering_of(source).uncalibrated(source, precision)
    assert choices.blocks == {name: name for name in LAYERS}
    kinds = _layer_kinds(choices.build(chosen))
    # in 8 bits a layer's result has another name, as its float32 follows
    assert (
        Counter(kinds.values())
        == Counter({"int8": len(chosen), "float32": len(LAYERS) - len(chosen)}) - Counter()
    )
    left = [name for name in LAYERS if name not in chosen]
    assert [kinds[name] for name in left] == ["float32"] * len(left)


def test_scales_come_from_the_calibration_images(source: Path, photos: Path) -> None:
    images = calibration_set(photos)
    made = [_made(source, "int8", images) for _ in range(2)]
    assert made[0] == made[1]
    one, others = images.split()
    assert _made(source, "int8", one) != _made(source, "int8", others)
    content = tflite_graph.read_model(source)
    flows = [*tflite_activations.activations(content, ["raw"], images.tensors(SAID.input))]
    values = np.stack([flow["raw"] for flow in flows])
    scale = tflite_graph.scales(model_of(_static_inputs(source, images)))["colours"]
    assert scale.last - scale.first == 255
    seen = tflite_activations.activations(content, ["colours"], images.tensors(SAID.input))
    colours = np.stack([flow["colours"] for flow in seen])
    low, high = min(colours.min(), 0), max(colours.max(), 0)
    assert scale.step == pytest.approx((high - low) / 255, rel=1e-5)
    assert values.shape[1:] == (1, 24, 4)


def _static_inputs(source: Path, images: CalibrationSet) -> bytes:
    """Linear layers alone, so that their float32 input is rounded."""
    return _calibrated(source, images).build(["raw", "scores"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_honest_artifact_passes_on_both_kernels(
    source: Path, photos: Path, against: Trial, precision: str, tmp_path: Path
) -> None:
    model = _made(source, precision, calibration_set(photos))
    judgement = judge(SAID, _artifact(tmp_path / "m.tflite", model, precision), against, _NO_LIMIT)
    assert judgement.passed, judgement.failures
    assert [*judgement.elsewhere] == ["reference"]
    assert judgement.elsewhere["reference"].agreement.wanted > 20


_DISGUISES = [*permutations(("fp32", *PRECISIONS), 2)]


@pytest.mark.parametrize(("says", "holds"), [pair for pair in _DISGUISES if pair[0] != "fp32"])
def test_a_precision_in_disguise_is_refused(
    source: Path, photos: Path, against: Trial, says: str, holds: str, tmp_path: Path
) -> None:
    images = calibration_set(photos)
    model = source.read_bytes() if holds == "fp32" else _made(source, holds, images)
    path = _artifact(tmp_path / "m.tflite", model, says)
    (failure,) = judge(SAID, path, against, _NO_LIMIT).failures
    assert failure.startswith(f"it says {says}, but most of its weights are {holds}")


def test_scales_from_other_images_are_refused(source: Path, against: Trial, tmp_path: Path) -> None:
    dark = np.random.default_rng(0).integers(0, 16, (4, 64, 96, 3), np.uint8)
    model = _made(source, "int8", calibration_set(dark))
    path = _artifact(tmp_path / "m.tflite", model, "int8")
    failures = judge(SAID, path, against, _NO_LIMIT).failures
    assert any("its scales do not fit these images" in failure for failure in failures), failures


def test_the_search_leaves_in_float_what_spoils_detections(
    source: Path, photos: Path, against: Trial
) -> None:
    dark = np.random.default_rng(0).integers(0, 16, (4, 64, 96, 3), np.uint8)
    fitting = _calibrated(source, calibration_set(photos))
    spoilt = _calibrated(source, calibration_set(dark))

    def build(names: Collection[str]) -> bytes:
        return (spoilt if "scores" in names else fitting).build(names)

    found = search(Choices(fitting.blocks, build, ".tflite"), against, 0.0)
    assert [row.layer for row in found.rows if not row.quantized] == ["scores"]
    assert found.outcome.agreement.close
    assert _layer_kinds(found.model)["scores"] == "float32"


def test_zeroed_weights_are_named(source: Path, against: Trial, tmp_path: Path) -> None:
    path = _artifact(tmp_path / "m.tflite", _changed(source, "kernel", np.zeros_like), "fp32")
    assert judge(SAID, path, against).failures == ("the weights of convolved are all zero",)


def test_what_halves_cannot_hold_stays_in_float(source: Path, tmp_path: Path) -> None:
    large = _changed(source, "raw weight", lambda weights: weights * 1e6)
    path = _artifact(tmp_path / "m.tflite", large, "fp32")
    made, counts = lowering_of(path).half(path, [])
    assert (counts["half_layers"], counts["float_layers"]) == (2, 1)
    assert _layer_kinds(made)["raw"] == "float32"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Where an artifact lies already."""
    path = tmp_path / "model.tflite"
    path.write_text("an older artifact")
    return path


def test_a_run_cut_short_leaves_the_older_file(
    source: Path, photos: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_uncalibrated(source, older, calibration_set(photos), precision="int8-dynamic")
    assert [file.name for file in older.parent.iterdir()] == ["model.tflite"]
    assert older.read_text() == "an older artifact"


def test_a_full_disk_is_named_and_leaves_the_older_file(
    source: Path, photos: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left .*/model\.tflite'"):
        export_fp16(source, older, calibration_set(photos))
    assert [file.name for file in older.parent.iterdir()] == ["model.tflite"]
    assert older.read_text() == "an older artifact"


def test_one_format_does_not_become_another(source: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'m\.onnx' must end in \.tflite"):
        export_fp16(source, tmp_path / "m.onnx", calibration_set(photos))


def test_an_artifact_that_finds_less_is_kept_as_rejected(
    source: Path, photos: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = with_document(_changed(source, "scores weight", np.negative), SAID.to_json())
    lowering = replace(lowering_of(source), half=lambda *_: (spoilt, {}))
    monkeypatch.setattr(exporting, "lowering_of", lambda _: lowering)
    monkeypatch.setattr(exporting, "judge", _without_a_look_inside)
    with pytest.raises(ArtifactError, match=r"(?s)confident detections.*on reference: it loses"):
        export_fp16(source, older, calibration_set(photos))
    assert older.read_text() == "an older artifact"
    kept = older.with_name("model.tflite.rejected").rename(older.with_name("kept.tflite"))
    assert _said(kept).provenance.verification == "skipped"
    assert not sidecar_path(older).exists()


def _without_a_look_inside(wanted: ModelMetadata, candidate: Path, *rest: object) -> object:
    """The gate, told that the file is what it holds."""
    content = candidate.read_bytes()
    said = replace(wanted, precision="fp32")
    candidate.write_bytes(with_document(model_of(content), said.to_json()))
    judged = judge(said, candidate, *rest)
    candidate.write_bytes(content)
    return judged


@pytest.mark.parametrize("precision", ["int8-full", "full-integer"])
def test_all_integer_is_refused_with_the_reason_and_the_nearest(
    source: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(source), "-o", "o.tflite", "--format", "tflite"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--precision", precision])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "no all-integer precision" in message
    assert "The nearest is int8" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is an artifact already"),
        (["--precision", "int8"], "needs images that fix its scales"),
        (["--precision", "fp16", "--no-verify"], "never handed out unseen"),
        (["--precision", "int8-dynamic", "--calibration", "d"], "whose scales need images"),
        (["--precision", "int8", "--target", "tensorrt"], "TensorRT reads no .tflite"),
        (["--precision", "fp16", "--batch", "2"], "takes one image a run"),
        (["--precision", "fp16", "--notes", "x"], "--notes is for a checkpoint"),
        (["--precision", "fp16", "--target", "cpu"], "--target is for --format onnx"),
        (["--precision", "fp16", "--converter", "auto"], "--converter is for what must be conve"),
        (["--precision", "int8", "--calibration", "empty"], "empty"),
        (["--precision", "int8", "--calibration", "broken"], "no image that OpenCV can read"),
        (["--precision", "int8-dynamic", "-o", "missing/o.tflite"], "missing is no folder"),
        (["--format", "onnx", "-o", "o.onnx"], "an .onnx is made from a checkpoint"),
    ],
)
def test_what_does_not_fit_together_is_a_clear_error(
    source: Path,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "broken"):
        (tmp_path / folder).mkdir()
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / "broken" / name).write_bytes(b"no image")
    command = ["export", str(source), "-o", "o.tflite", "--format", "tflite"]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*o.*"))


def test_only_fp32_is_lowered(
    source: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lowered = _artifact(
        tmp_path / "m.tflite", _made(source, "fp16", calibration_set(photos)), "fp16"
    )
    command = ["export", str(lowered), "-o", str(tmp_path / "o.tflite"), "--format", "tflite"]
    assert main([*command, "--precision", "int8-dynamic", "--images", str(photos)]) == 2
    assert "is fp16 already" in capsys.readouterr().err


_HEAD = "exporters.tflite.export._NamedForm/exporters.export_form.ExportForm_form/"
_NETWORK = _HEAD + "trainer.model.rfdetr.RFDETR_model"
_BLOCK = f"{_NETWORK}/trainer.model.encoder.Encoder_encoder/trainer.model.encoder.Block_3"
_ATTENTION = f"{_BLOCK}/trainer.model.encoder.Attention_attention"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (f"{_BLOCK}/torch.nn.modules.linear.Linear_fc1;1", "encoder/Block_3/fc1"),
        (f"{_BLOCK};{_ATTENTION};{_BLOCK};", "encoder/Block_3/attention"),
        (
            f"{_BLOCK};{_ATTENTION}/torch.nn.modules.linear.Linear_key;"
            f"{_ATTENTION}/torch.nn.modules.linear.Linear_query;1",
            "encoder/Block_3/attention/key",
        ),
        (f"{_NETWORK};4", "network"),
        ("arith.constant12", "arith.constant12"),
    ],
)
def test_names_are_those_of_the_network(name: str, short: str) -> None:
    assert tflite_names.short_name(name) == short


@pytest.mark.parametrize("precision", PRECISIONS[2:])
def test_numbers_behind_the_graph_are_found(precision: str, tmp_path: Path) -> None:
    """Where litert-quantizer puts those of all but small models."""
    graph = tflite_graphs.Graph()
    weights = np.random.default_rng(0).normal(size=(600, 600)).astype(np.float32)
    given, bias = graph.tensor("given", (1, 600)), graph.constant("bias", np.zeros(600, np.float32))
    inputs = [given, graph.constant("weights", weights), bias]
    wide = graph.tensor("wide", (1, 600))
    graph.node("FULLY_CONNECTED", inputs, wide, table="FullyConnectedOptions")
    path = tmp_path / "m.tflite"
    model = graph.packed({"given": given}, {"wide": wide}, signature=True)
    path.write_bytes(with_document(model, SAID.to_json()))
    made = lowering_of(path).uncalibrated(path, precision).build(["wide"])
    (product,) = tflite_graph.products(model_of(made))
    steps = np.abs(weights).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(product.weights * steps, weights, atol=steps.max() / 1.9)
    path.write_bytes(made)
    assert _held(path) == {precision: weights.size}


def _with_table(large: float) -> bytes:
    """A model that adds a table of 18,432 numbers around 0, one of them another."""
    graph = tflite_graphs.Graph()
    shape = (1, 3, 64, 96)
    table = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    table[0, 0, 0, 0] = large
    image, total = graph.tensor("image", shape), graph.tensor("sum", shape)
    graph.node("ADD", [image, graph.constant("table", table)], total, table="AddOptions")
    return graph.packed({"input": image}, {"sum": total}, signature=True)


@pytest.mark.parametrize("provider", ["xnnpack", "reference"])
def test_a_table_is_stored_as_halves(tmp_path: Path, provider: str) -> None:
    path = tmp_path / "m.tflite"
    whole = _with_table(1.0)
    path.write_bytes(whole)
    feeds = {"input": np.ones((1, 3, 64, 96), np.float32)}
    expected = open_session(path, provider=provider).run(feeds)["sum"]
    halved = tflite_constants.halved_constants(whole)
    assert len(halved) < 0.55 * len(whole)
    path.write_bytes(halved)
    found = open_session(path, provider=provider).run(feeds)["sum"]
    np.testing.assert_allclose(found, expected, rtol=2**-11, atol=2**-10)


def test_a_table_that_halves_cannot_hold_stays_as_it_is() -> None:
    model = _with_table(1e6)
    assert tflite_constants.halved_constants(model) is model
