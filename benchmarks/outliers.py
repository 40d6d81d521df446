"""Activation outliers as pretrained encoders have them, put into a model without changing it.

A few channels of each normalisation of the encoder grow, and the weights that read them shrink by
as much; so do a few channels of each attention's values and the projection that reads them.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from exporters.linears import linears
from exporters.onnx_cleanup import cleaned

_CHANNELS = 4
_READERS = {"norm1": ("attention/query", "attention/key", "attention/value"), "norm2": ("fc1",)}


def injected(
    model: onnx.ModelProto, *, low: float = 30.0, high: float = 100.0, seed: int = 0
) -> onnx.ModelProto:
    """The same function with outliers of `low` to `high` times the size; an export of ours."""
    result = cleaned(model)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    layers = {layer.name: layer for layer in linears(result)}
    rng = np.random.default_rng(seed)

    def scale(name: str, factors: np.ndarray, axis: int) -> None:
        array = numpy_helper.to_array(constants[name])
        shape = [1] * array.ndim
        shape[axis] = -1
        scaled = (array * factors.reshape(shape)).astype(np.float32)
        constants[name].CopyFrom(numpy_helper.from_array(scaled, name))

    def draw(channels: int) -> np.ndarray:
        factors = np.ones(channels)
        factors[rng.choice(channels, _CHANNELS, replace=False)] = rng.uniform(low, high, _CHANNELS)
        return factors

    block = 0
    while f"/model/encoder/blocks.{block}/fc1" in layers:
        root = f"/model/encoder/blocks.{block}"
        dim = constants[f"model.encoder.blocks.{block}.norm1.weight"].dims[0]
        for norm, readers in _READERS.items():
            factors = draw(dim)
            for part in ("weight", "bias"):
                scale(f"model.encoder.blocks.{block}.{norm}.{part}", factors, 0)
            for reader in readers:
                scale(layers[f"{root}/{reader}"].weight, 1 / factors, 0)
        value, factors = layers[f"{root}/attention/value"], draw(dim)
        scale(value.weight, factors, 1)
        assert value.bias is not None
        scale(value.bias, factors, 0)
        scale(layers[f"{root}/attention/output"].weight, 1 / factors, 0)
        block += 1
    return result
