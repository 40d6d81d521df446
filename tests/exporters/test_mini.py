"""Lower precision of a trained model larger than the embedded ones (tests/models/README.md)."""

from pathlib import Path

import pytest

from exporters.calibration import annotated_set, calibration_set
from exporters.onnx_export import export_onnx
from exporters.precision import export_fp16, export_int8
from rfdetr_edge.demo import photo_paths
from trainer.checkpoint import load_checkpoint

_TESTS = Path(__file__).parent.parent


@pytest.mark.slow
def test_mini_keeps_what_it_finds(tmp_path: Path) -> None:
    photos = photo_paths()
    fp32, fp16, int8 = (tmp_path / f"{name}.onnx" for name in ("fp32", "fp16", "int8"))
    found = export_onnx(load_checkpoint(_TESTS / "models" / "mini.pth"), fp32, images=photos)
    assert found is not None
    annotated = annotated_set(_TESTS / "photos.coco.json", photos[0].parent)
    halves = export_fp16(fp32, fp16, annotated)
    bytes_ = export_int8(fp32, int8, calibration_set(photos), annotated)
    for judged, path, size in ((halves, fp16, 0.51), (bytes_, int8, 0.33)):
        assert judged.outcome is not None
        agreed = judged.outcome.agreement
        assert agreed.wanted > 20
        assert (agreed.lost, agreed.invented) == (0, 0)
        assert judged.outcome.drops["bbox"].points < 0.5
        assert path.stat().st_size < size * fp32.stat().st_size
