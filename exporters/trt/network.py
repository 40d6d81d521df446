"""An ONNX file as a network of TensorRT: parsed, and asked what its layers compute in and give."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.trt.dialect import Installed
from exporters.trt.log import checked, constructed, last_lines
from rfdetr_edge.backends.tensorrt_log import listener
from rfdetr_edge.errors import BackendError
from rfdetr_edge.metadata import Precision

_FLOATS: Mapping[str, Precision] = {"FLOAT": "fp32", "HALF": "fp16"}
_TYPES: Mapping[str, Precision] = {**_FLOATS, "INT8": "int8"}


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A parsed network.

    builder, definition: TensorRT's IBuilder and INetworkDefinition. parser: holds the weights,
    which the definition only points at.
    """

    builder: Any
    definition: Any
    parser: Any

    @property
    def image(self) -> tuple[str, tuple[int, ...]]:
        """The name of the first input and its shape, -1 where that is open."""
        network = self.definition
        tensor = network.get_input(0)
        return tensor.name, tuple(tensor.shape)


def parse(tensorrt: Installed, source: Path) -> Network:
    """Reads an ONNX file as a strongly typed network.

    Raises BackendError with everything that TensorRT has against it.
    """
    module = tensorrt.module
    log = listener(module)
    log.heard.clear()
    builder = constructed(module, module.Builder, log)
    typed = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = checked(module, builder.create_network(typed), "create a network")
    parser = constructed(module, module.OnnxParser, network, log)
    if not parser.parse_from_file(str(source)):
        _refuse(tensorrt, source, parser)
    return Network(builder, network, parser)


def products(module: Any, network: Any) -> Mapping[Precision, int]:
    """How many matrix products and convolutions of a strongly typed network compute in what.

    In int8 where both factors were rounded: TensorRT fuses what restores them into the product.
    """
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    makers = {
        layer.get_output(place).name: layer
        for layer in layers
        for place in range(layer.num_outputs)
    }
    kinds: Counter[Precision] = Counter()
    for layer in layers:
        if layer.type not in (module.LayerType.MATRIX_MULTIPLY, module.LayerType.CONVOLUTION):
            continue
        sources = [
            _source(module, makers, layer.get_input(place)) for place in range(layer.num_inputs)
        ]
        if [source == module.LayerType.DEQUANTIZE for source in sources[:2]] == [True, True]:
            kinds["int8"] += 1
        elif (kind := _FLOATS.get(layer.get_output_type(0).name)) is not None:
            kinds[kind] += 1
    return kinds


def outputs(module: Any, network: Any) -> Mapping[Precision, int]:
    """How many layers of a strongly typed network give what, by their first output.

    Without constants and changes of shape, of which nothing is left in an engine.
    """
    gone = (module.LayerType.CONSTANT, module.LayerType.SHUFFLE)
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    names = [layer.get_output_type(0).name for layer in layers if layer.type not in gone]
    return Counter(_TYPES[name] for name in names if name in _TYPES)


def _source(module: Any, makers: Mapping[str, Any], tensor: Any) -> Any:
    """The type of the layer that a tensor comes from, changes of shape aside; None for an input."""
    layer = None if tensor is None else makers.get(tensor.name)
    while layer is not None and layer.type == module.LayerType.SHUFFLE:
        layer = makers.get(layer.get_input(0).name)
    return None if layer is None else layer.type


def _refuse(tensorrt: Installed, source: Path, parser: Any) -> None:
    """Raises all that the parser found wrong."""
    texts = []
    for number in range(parser.num_errors):
        fault = parser.get_error(number)
        node = " ".join(filter(None, (fault.node_operator(), fault.node_name()))) or "the graph"
        texts.append(f"\n  {node}: {fault.desc()}")
    raise BackendError(
        f"{tensorrt} cannot run {source}; export it again with rfdetr-edge, or run it with ONNX "
        f"Runtime:{''.join(texts)}{last_lines(tensorrt.module)}"
    )
