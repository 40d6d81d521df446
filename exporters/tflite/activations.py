"""What flows through a .tflite: runs it and reads inner tensors, image by image."""

from collections.abc import Iterator, Sequence
from typing import Any

from ai_edge_litert import interpreter as litert
from numpy.typing import NDArray

from exporters.formats import Tensors
from rfdetr_edge.machine import this_machine

_CHANNELS = 3


def activations(
    content: bytes, names: Sequence[str], tensors: Tensors
) -> Iterator[dict[str, NDArray[Any]]]:
    """For each input tensor (1, 3, H, W): name -> value of the tensors named.

    content: a model that takes one float32 image, NCHW or NHWC. It runs on LiteRT's own kernels,
    since XNNPACK keeps no inner tensors.
    """
    interpreter = litert.Interpreter(
        model_content=content,
        num_threads=this_machine().cores,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    wanted = set(names)
    places = {
        found["name"]: found["index"]
        for found in interpreter.get_tensor_details()
        if found["name"] in wanted
    }
    (given,) = interpreter.get_input_details()
    channels_last = given["shape"][1] != _CHANNELS
    for tensor in tensors:
        if channels_last:
            tensor = tensor.transpose(0, 2, 3, 1)
        interpreter.set_tensor(given["index"], tensor)
        interpreter.invoke()
        yield {name: interpreter.get_tensor(places[name]) for name in names}
