"""`rfdetr-edge export --precision`: an artifact of lower precision, or why there is none."""

import json
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest

from exporters.inspection import inspected
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
    seen = inspected(onnx.load(output))
    assert (seen.precision, seen.integer_inputs) == ("int8", 1.0)
    assert output.stat().st_size < 0.33 * model_path().stat().st_size
    report = json.loads((tmp_path / "tiny-int8.onnx.report.json").read_text())
    assert report["calibration"] == asdict(said.provenance.calibration)
    assert report["bytes"]["ratio"] < 0.33
    blocks = {row["block"]: row["block_cost"] for row in report["layers"]}
    assert len(blocks) > 10
    assert all(0 < cost < 0.5 for cost in blocks.values())
    assert "/model/encoder/blocks.3" in (tmp_path / "tiny-int8.onnx.report.html").read_text()


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
        (["--precision", "fp16", "--no-verify"], "never handed out unseen"),
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
