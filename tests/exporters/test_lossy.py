"""The gate of lower precision lets honest artifacts pass and names what is wrong with others."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters.calibration import calibration_set
from exporters.formats import default_max_drop
from exporters.linears import linears
from exporters.lossy import judge
from exporters.onnx_cleanup import cleaned
from exporters.onnx_graph import replace_metadata
from exporters.onnx_precision.dynamic import dynamic
from exporters.onnx_precision.fp16 import to_fp16
from exporters.onnx_precision.int8 import calibrated
from exporters.onnx_precision.quantize import SCHEMES
from exporters.onnx_precision.weight_only import weight_only
from exporters.trials import Trial, trial
from rfdetr_edge.backends import open_session
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.detector import Detector
from rfdetr_edge.metadata import ModelMetadata

_NO_LIMIT = 100.0


@dataclass(frozen=True)
class Source:
    """The embedded model: its graph, what it says, what it finds on the embedded photos."""

    graph: onnx.ModelProto
    metadata: ModelMetadata
    trial: Trial

    def artifact(self, graph: onnx.ModelProto, path: Path, precision: str) -> Path:
        """Written with the metadata of that precision."""
        onnx.save(graph, path)
        replace_metadata(path, replace(self.metadata, precision=precision))
        return path


@pytest.mark.parametrize(
    ("suffix", "points"),
    [
        (".onnx", {"fp16": 0.1, "int8": 0.5, "int8-dynamic": 0.5, "int8-weight-only": 0.5}),
        (".tflite", {"fp16": 0.1, "int8": 1.0, "int8-dynamic": 0.5, "int8-weight-only": 0.3}),
        (".engine", {"fp16": 0.1, "int8": 0.5}),
    ],
)
def test_what_may_be_lost_follows_from_format_and_precision(suffix: str, points: dict) -> None:
    found = {precision: default_max_drop(Path(f"m{suffix}"), precision) for precision in points}
    assert found == points


@pytest.fixture(scope="module")
def source() -> Source:
    session = open_session(model_path(), provider="cpu")
    against = trial(session, calibration_set(photo_paths()))
    metadata = Detector.from_session(session).metadata
    return Source(cleaned(onnx.load(model_path())), metadata, against)


def _int8(source: Source, images: list[Path] | np.ndarray) -> onnx.ModelProto:
    spec = source.metadata.input
    ready = calibrated(source.graph, calibration_set(images), spec, SCHEMES["cpu"])
    return ready.quantized(ready.layers)


@pytest.fixture(scope="module")
def int8(source: Source) -> onnx.ModelProto:
    return _int8(source, photo_paths())


@pytest.fixture(scope="module")
def fp16(source: Source) -> onnx.ModelProto:
    return to_fp16(source.graph).model


@pytest.fixture(scope="module", name="int8-dynamic")
def int8_dynamic(source: Source) -> onnx.ModelProto:
    return dynamic(source.graph, linears(source.graph))


@pytest.fixture(scope="module", name="int8-weight-only")
def int8_weight_only(source: Source) -> onnx.ModelProto:
    return weight_only(source.graph, linears(source.graph))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-dynamic", "int8-weight-only"])
def test_an_honest_artifact_passes(
    source: Source, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = source.artifact(request.getfixturevalue(precision), tmp_path / "m.onnx", precision)
    judgement = judge(source.metadata, path, source.trial, _NO_LIMIT)
    assert judgement.passed, judgement.failures
    assert judgement.outcome is not None
    assert judgement.outcome.agreement.wanted > 20


def _tensor(graph: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.graph.initializer if tensor.name == name)


def _changed(
    graph: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    tensor = _tensor(copy, name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return copy


def _outputs_swapped(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    names = {"dets": "labels", "labels": "dets"}
    for node in copy.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]
    return copy


def _channel_grown(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """One channel beyond 65504 before the layer that reads it."""
    return _changed(graph, name, lambda w: (w + w * np.eye(1, len(w))[0] * 1e6).astype(np.float32))


_PATCHES = "model.encoder.patches.weight"
_SABOTAGE: dict[str, tuple[str, Callable[[onnx.ModelProto], onnx.ModelProto], str]] = {
    "colours": (
        "int8",
        lambda graph: _changed(graph, f"{_PATCHES}/whole", lambda w: w[:, ::-1].copy()),
        "BGR",
    ),
    "outputs": ("int8", _outputs_swapped, "each other's name"),
    "zeroed": (
        "int8",
        lambda graph: _changed(graph, f"{_PATCHES}/whole", np.zeros_like),
        "the weights of /model/encoder/patches are all zero",
    ),
    "overflow": (
        "fp16",
        lambda graph: _channel_grown(graph, "model.encoder.blocks.0.norm2.weight"),
        "half precision overflows",
    ),
}


@pytest.mark.parametrize("case", _SABOTAGE)
def test_a_sabotaged_artifact_is_refused_by_what_is_wrong_with_it(
    source: Source, case: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    precision, sabotage, message = _SABOTAGE[case]
    graph = sabotage(request.getfixturevalue(precision))
    path = source.artifact(graph, tmp_path / "m.onnx", precision)
    failures = judge(source.metadata, path, source.trial, _NO_LIMIT).failures
    assert any(message in failure for failure in failures), failures
    others = {text for name, (*_, text) in _SABOTAGE.items() if name != case}
    assert not any(other in failure for failure in failures for other in others)


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-weight-only"])
def test_only_half_precision_can_overflow_its_range(
    source: Source, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = "model.encoder.blocks.0.norm2.weight"
    graph = _channel_grown(request.getfixturevalue(precision), name)
    path = source.artifact(graph, tmp_path / "m.onnx", precision)
    failures = judge(source.metadata, path, source.trial, _NO_LIMIT).failures
    assert not any("overflow" in failure for failure in failures), failures


def test_images_without_anything_to_find_prove_nothing(
    source: Source, int8: onnx.ModelProto, tmp_path: Path
) -> None:
    path = source.artifact(int8, tmp_path / "m.onnx", "int8")
    with closing(open_session(model_path(), provider="cpu")) as session:
        black = trial(session, calibration_set(np.zeros((2, 64, 64, 3), np.uint8)))
    failures = judge(source.metadata, path, black, _NO_LIMIT).failures
    assert any("nothing was compared" in failure for failure in failures), failures


def test_another_mean_is_refused_before_anything_runs(
    source: Source, int8: onnx.ModelProto, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(int8, path)
    spec = replace(source.metadata.input, mean=(0.5, 0.5, 0.5))
    replace_metadata(path, replace(source.metadata, precision="int8", input=spec))
    judgement = judge(source.metadata, path, source.trial, _NO_LIMIT)
    assert judgement.outcome is None
    assert judgement.failures == ("the mean: (0.5, 0.5, 0.5) instead of (0.485, 0.456, 0.406)",)


def test_scales_from_noise_are_refused(source: Source, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    path = source.artifact(_int8(source, noise), tmp_path / "m.onnx", "int8")
    failures = judge(source.metadata, path, source.trial, _NO_LIMIT).failures
    assert any("its scales do not fit these images" in failure for failure in failures), failures


@pytest.mark.parametrize("says", ["fp16", "int8", "int8-dynamic", "int8-weight-only"])
def test_float32_in_disguise_is_refused(source: Source, says: str, tmp_path: Path) -> None:
    path = source.artifact(source.graph, tmp_path / "m.onnx", says)
    failures = judge(source.metadata, path, source.trial, _NO_LIMIT).failures
    assert failures == (f"it says {says}, but most of its weights are fp32",)


_MET = {
    "int8": "their activations rounded by stored scales",
    "int8-dynamic": "their activations rounded by scales that each run finds",
    "int8-weight-only": "their activations in float",
}


@pytest.mark.parametrize(("says", "holds"), list(permutations(_MET, 2)))
def test_weights_of_8_bits_must_meet_what_the_artifact_says(
    source: Source, says: str, holds: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = source.artifact(request.getfixturevalue(holds), tmp_path / "m.onnx", says)
    failures = judge(source.metadata, path, source.trial, _NO_LIMIT).failures
    stored = f"most of its weights are {holds}: stored in 8 bits, {_MET[holds]}"
    assert failures == (f"it says {says}, but {stored}",)
