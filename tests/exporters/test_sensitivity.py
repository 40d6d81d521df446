"""A layer that spoils what is found returns to float, and only that one."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from int8_graphs import constants_of, multiplied, tiny

from exporters.calibration import calibration_set
from exporters.formats import Choices
from exporters.linears import Linear, linears
from exporters.onnx_precision.dynamic import dynamic
from exporters.onnx_precision.lowering import choices
from exporters.onnx_precision.weight_only import weight_only
from exporters.sensitivity import search
from exporters.trials import Trial, trial
from rfdetr_edge.backends import open_session
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.errors import ArtifactError

_NORM = "model.decoder.norm"
_READERS = ("/model/class_head", "/model/box_head/layers.0")
_SPOILT = "/model/class_head"
_HARMLESS = ("/model/box_head/layers.1", "/model/box_head/layers.2")
_NO_LOSS = 0.0


@pytest.fixture(scope="module")
def against() -> Trial:
    """What the embedded model finds on one photo."""
    return trial(open_session(model_path(), provider="cpu"), calibration_set(photo_paths()[:1]))


def _outlier(factor: float) -> onnx.ModelProto:
    """The same function with a channel of the last normalisation so much larger."""
    layers = {layer.name: layer for layer in linears(tiny())}
    along = np.ones(len(constants_of(tiny())[f"{_NORM}.weight"]))
    along[7] = factor
    readers = {layers[name].weight: 1 / along[:, None] for name in _READERS}
    return multiplied(tiny(), {f"{_NORM}.weight": along, f"{_NORM}.bias": along, **readers})


_Write = Callable[[onnx.ModelProto, Sequence[Linear]], onnx.ModelProto]


def _layers(*names: str) -> list[Linear]:
    return [layer for layer in linears(tiny()) if layer.name in names]


def _choices(layers: Sequence[Linear], write: _Write, factor: float) -> Choices:
    return choices(layers, lambda chosen: write(_outlier(factor), chosen))


@pytest.mark.parametrize(
    ("write", "factor"),
    # steps follow the largest value of a tensor, or the largest weight of a column
    [(dynamic, 1e5), (weight_only, 1e-5)],
)
def test_what_an_outlier_spoils_is_left_in_float(
    write: _Write,
    factor: float,
    against: Trial,
):
    layers = _layers(_SPOILT, *_HARMLESS)
    found = search(_choices(layers, write, factor), against, _NO_LOSS)
    assert [row.layer for row in found.rows if not row.quantized] == [_SPOILT]
    costs = {row.layer: row.cost or 0.0 for row in found.rows}
    assert costs.pop(_SPOILT) > 10 * max(costs.values())
    assert found.outcome.agreement.close
    constants = constants_of(onnx.load_from_string(found.model))
    assert [layer.name for layer in layers if layer.weight in constants] == [_SPOILT]


def test_where_half_of_the_layers_are_not_enough_there_is_no_artifact(against: Trial):
    alone = _choices(_layers(_SPOILT), dynamic, 1e5)
    with pytest.raises(ArtifactError, match="with 0 of 1 layers back in float, INT8 still loses"):
        search(alone, against, _NO_LOSS)
