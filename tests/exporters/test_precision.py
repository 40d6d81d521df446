"""`rfdetr-edge export --precision`: an artifact of lower precision, or why there is none."""

import json
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest

from exporters.inspection import inspected
from exporters.linears import linears
from exporters.onnx_cleanup import cleaned
from rfdetr_edge.cli import main
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.metadata import METADATA_KEY, ModelMetadata, parse_metadata

_ANNOTATIONS = Path(__file__).parent.parent / "photos.coco.json"


def _said(path: Path) -> ModelMetadata:
    props = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    return parse_metadata(props[METADATA_KEY])


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded photos as a COCO split."""
    folder = tmp_path_factory.mktemp("split")
    for photo in photo_paths():
        (folder / photo.name).symlink_to(photo)
    (folder / "_annotations.coco.json").write_bytes(_ANNOTATIONS.read_bytes())
    return folder


def test_fp16_of_an_artifact_passes_the_gate_and_says_so(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tiny-fp16.onnx"
    command = ["export", str(model_path()), "-o", str(output), "--precision", "fp16"]
    assert main([*command, "--validation", str(annotated), "--max-drop", "1"]) == 0
    said = _said(output)
    assert (said.precision, said.provenance.verification) == ("fp16", "passed")
    assert inspected(onnx.load(output)).precision == "fp16"
    assert output.stat().st_size < 0.55 * model_path().stat().st_size
    page = (tmp_path / "tiny-fp16.onnx.report.html").read_text()
    assert page.count("data:image/jpeg") == 2 * len(photo_paths())
    assert "http" not in page
    report = json.loads((tmp_path / "tiny-fp16.onnx.report.json").read_text())
    assert report["passed"]
    assert report["counts"]["half_nodes"] > report["counts"]["island_nodes"] > 0
    assert report["counts"]["subnormal_weights"] > report["counts"]["zeroed_weights"]
    assert report["drops"]["bbox"]["low"] <= report["drops"]["bbox"]["points"]
    assert "points (95 % interval" in capsys.readouterr().out
    verify = ["verify", str(model_path()), str(output), "--images", str(annotated)]
    assert main([*verify, "--annotations", str(_ANNOTATIONS), "--max-drop", "1"]) == 0
    assert "keeps to" in capsys.readouterr().out
    assert main([*verify, "--max-drop", "1"]) == 2
    assert "--max-drop is for --annotations" in capsys.readouterr().err


def test_int8_of_an_artifact_passes_the_gate_and_names_its_calibration(
    annotated: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tiny-int8.onnx"
    command = ["export", str(model_path()), "-o", str(output), "--precision", "int8"]
    assert main([*command, "--calibration", str(annotated), "--max-images", "4"]) == 0
    said = _said(output)
    assert (said.precision, said.provenance.verification) == ("int8", "passed")
    assert said.provenance.calibration is not None
    assert said.provenance.calibration.images == min(4, len(photo_paths()))
    assert set(inspected(onnx.load(output)).weights) == {"int8", "fp32"}
    assert output.stat().st_size < 0.33 * model_path().stat().st_size
    report = json.loads((tmp_path / "tiny-int8.onnx.report.json").read_text())
    assert report["calibration"] == asdict(said.provenance.calibration)
    assert report["bytes"]["ratio"] < 0.33
    blocks = {row["block"]: row["block_cost"] for row in report["layers"]}
    assert len(blocks) > 10
    assert all(0 < cost < 0.5 for cost in blocks.values())
    assert "/model/encoder/blocks.3" in (tmp_path / "tiny-int8.onnx.report.html").read_text()


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-weight-only"])
def test_int8_without_calibration_passes_the_gate_and_says_so(
    precision: str, annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.onnx"
    command = ["export", str(model_path()), "-o", str(output), "--precision", precision]
    assert main([*command, "--validation", str(annotated), "--max-drop", "2"]) == 0
    said = _said(output)
    assert (said.precision, said.provenance.verification) == (precision, "passed")
    assert said.provenance.calibration is None
    seen = inspected(onnx.load(output))
    assert seen.precision == precision
    assert seen.weights[precision] > 0.8 * sum(seen.weights.values())
    assert output.stat().st_size < 0.30 * model_path().stat().st_size
    report = json.loads((tmp_path / "m.onnx.report.json").read_text())
    assert report["passed"]
    assert report["bytes"]["ratio"] < 0.30
    assert report["weights"] == seen.weights
    # the third photo is the search's, which looked at every layer
    assert len(photo_paths()) == 3
    assert report["agreement"]["images"] == 2
    assert {row["layer"] for row in report["layers"]} == {
        layer.name for layer in linears(cleaned(onnx.load(model_path())))
    }
    page = (tmp_path / "m.onnx.report.html").read_text()
    assert f"{seen.weights[precision]:,} in {precision}" in page
    capsys.readouterr()
    assert main(["info", str(output)]) == 0
    assert f"tiny, detection, {precision}\n" in capsys.readouterr().out
    verify = ["verify", str(model_path()), str(output), "--images", str(annotated)]
    assert main([*verify, "--annotations", str(_ANNOTATIONS), "--max-drop", "2"]) == 0
    assert "keeps to" in capsys.readouterr().out


def test_int8_without_calibration_needs_an_image_to_search_on_and_one_to_judge_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "one.jpg").symlink_to(photo_paths()[0])
    output = tmp_path / "m.onnx"
    command = ["export", str(model_path()), "-o", str(output), "--precision", "int8-dynamic"]
    assert main([*command, "--images", str(images)]) == 2
    assert "give at least 2 images" in capsys.readouterr().err
    assert not output.exists()


def test_an_artifact_that_loses_too_much_is_kept_as_rejected(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tiny.onnx"
    command = ["export", str(model_path()), "-o", str(output), "--precision", "fp16"]
    assert main([*command, "--validation", str(annotated), "--max-drop", "-100"]) == 1
    assert "points of AP, and -100 are allowed" in capsys.readouterr().err
    assert not output.exists()
    assert _said(tmp_path / "tiny.onnx.rejected").provenance.verification == "skipped"
    report = json.loads((tmp_path / "tiny.onnx.rejected.report.json").read_text())
    assert not report["passed"]
    assert "points of AP" in report["failures"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is an artifact already"),
        (["--precision", "int8"], "needs images that fix its scales"),
        (["--precision", "fp16", "--max-drop", "1"], "needs annotated images"),
        (["--precision", "int8-dynamic", "--max-drop", "1"], "needs annotated images"),
        (["--precision", "fp16", "--calibration", "d"], "--calibration is for --precision int8,"),
        (
            ["--precision", "int8-dynamic", "--calibration", "d"],
            "--calibration is for --precision int8, whose scales need images",
        ),
        (
            ["--precision", "int8-weight-only", "--calibration", "d"],
            "--calibration is for --precision int8, whose scales need images",
        ),
        (
            ["--precision", "int8-dynamic", "--target", "tensorrt"],
            "TensorRT cannot run int8-dynamic; give it --precision int8",
        ),
        (
            ["--precision", "int8-weight-only", "--target", "tensorrt"],
            "TensorRT cannot run int8-weight-only; give it --precision int8",
        ),
        (["--precision", "int8-dynamic", "--no-verify"], "never handed out unseen"),
        (["--precision", "fp16", "--no-verify"], "never handed out unseen"),
        (["--precision", "fp16", "--raw"], "--raw is for a checkpoint"),
        (["--precision", "fp16", "--shape", "64", "64"], "--shape is for a checkpoint"),
        (["--precision", "fp16", "--batch", "2"], "--batch is for a checkpoint"),
        (["--precision", "fp16", "--opset", "18"], "--opset is for a checkpoint"),
        (["--precision", "fp16", "--variant", "nano"], "--variant is for a checkpoint"),
        (["--precision", "fp16", "--no-antialias"], "--antialias is for a checkpoint"),
        (["--precision", "fp16", "--notes", "x"], "--notes is for a checkpoint; leave it out"),
        (["--precision", "fp16", "--target", "cpu"], "--target is for --precision int8"),
        (["--precision", "int8-dynamic", "--target", "cpu"], "--target is for --precision int8"),
        (["--precision", "fp16", "--observer", "mse"], "--observer is for --precision int8 with"),
        (["--precision", "int8", "--observer", "mse"], "--observer is for --precision int8 with"),
        (["--precision", "fp16", "--max-images", "9"], "--max-images is for --precision int8 wi"),
        (["--max-drop", "1"], "is an artifact already"),
    ],
)
def test_what_does_not_fit_together_is_a_clear_error(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.onnx"
    assert main(["export", str(model_path()), "-o", str(output), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_only_fp32_is_lowered(
    tmp_path: Path, annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "m.onnx"
    model = onnx.load(model_path())
    document = json.loads(model.metadata_props[0].value)
    onnx.helper.set_model_props(
        model, {METADATA_KEY: json.dumps({**document, "precision": "int8"})}
    )
    onnx.save(model, source)
    command = ["export", str(source), "-o", str(tmp_path / "o.onnx"), "--precision", "fp16"]
    assert main([*command, "--images", str(annotated)]) == 2
    assert "is int8 already" in capsys.readouterr().err
