"""From an FP32 artifact to INT8: calibrated, searched for what it costs, and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.calibration import CalibrationSet
from exporters.linears import Linear, linears
from exporters.observers import ChannelMean, Kind, Observer, observer
from exporters.onnx_cleanup import cleaned
from exporters.onnx_precision.activations import activations
from exporters.onnx_precision.migration import migrated
from exporters.onnx_precision.quantize import Scheme, observed, quantized
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.progress import Progress

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A graph that is ready to be quantised: any choice of its layers, without another run.

    ranges: of the tensors around the layers; means: of their input channels, by the tensor's name.
    """

    model: onnx.ModelProto
    layers: tuple[Linear, ...]
    ranges: Mapping[str, tuple[float, float]]
    means: Mapping[str, Float32]
    scheme: Scheme

    def quantized(self, chosen: Sequence[Linear]) -> onnx.ModelProto:
        """The graph with these layers in INT8."""
        return quantized(self.model, chosen, self.ranges, self.means, self.scheme)


def evened(model: onnx.ModelProto, images: CalibrationSet, spec: InputSpec) -> onnx.ModelProto:
    """The same function, cleaned, without channels that are larger than the others on the images.

    Raises ArtifactError for a graph that cannot be run or gives NaN, InputError for the images.
    """
    clean = cleaned(model)
    layers = linears(clean)
    sizes: dict[str, Float32] = {}
    with Progress("calibration: channels", len(images)) as progress:
        for values in activations(clean, _data(layers), images.tensors(spec)):
            for layer in layers:
                largest = np.abs(_by_channel(values[layer.data], layer)).max(axis=0)
                sizes[layer.data] = np.maximum(sizes.get(layer.data, largest), largest)
            progress.advance()
    return migrated(clean, layers, sizes)


def calibrated(
    model: onnx.ModelProto,
    images: CalibrationSet,
    spec: InputSpec,
    scheme: Scheme,
    kind: Kind = "minmax",
) -> Calibrated:
    """Cleans the graph, evens out its channels, and observes it on the images; errors as above."""
    even = evened(model, images, spec)
    layers = tuple(linears(even))
    names = observed(layers, scheme)
    observers: dict[str, Observer] = {name: observer(kind, name) for name in names}
    means = {layer.data: ChannelMean(layer.data) for layer in layers}
    by_data = {layer.data: layer for layer in layers}
    with Progress("calibration: ranges", len(images)) as progress:
        for values in activations(even, names, images.tensors(spec)):
            for name, seen in observers.items():
                seen.observe(values[name])
            for name, mean in means.items():
                mean.observe(_by_channel(values[name], by_data[name]))
            progress.advance()
    return Calibrated(
        even,
        layers,
        {name: seen.range(scheme.symmetric) for name, seen in observers.items()},
        {name: mean.mean().astype(np.float32) for name, mean in means.items()},
        scheme,
    )


def _data(layers: Sequence[Linear]) -> list[str]:
    return list(dict.fromkeys(layer.data for layer in layers))


def _by_channel(values: Float32, layer: Linear) -> Float32:
    """(places, channels) of what a layer reads."""
    if layer.kind == "Conv":
        values = np.moveaxis(values, 1, -1)
    return values.reshape(-1, values.shape[-1])
