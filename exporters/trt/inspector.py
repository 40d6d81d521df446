"""What data types the layers of a built engine give, by TensorRT's engine inspector; needs a GPU.

Asked of the engine and not of the request: TensorRT has built FP32 for FP16 without a word
(roboflow/rf-detr issue 1453).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from exporters.trt.dialect import Installed
from exporters.trt.log import checked, constructed
from rfdetr_edge.backends.tensorrt_log import listener
from rfdetr_edge.errors import InputError
from rfdetr_edge.metadata import Precision

# "Half", or inside "Row major linear FP16 format", as versions have it.
_TYPES = re.compile(r"\b(Float|FP32|Half|FP16|Int8)\b", re.IGNORECASE)
_SAME = {"Fp32": "Float", "Fp16": "Half"}
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
PRECISIONS: Mapping[str, Precision] = {"Float": "fp32", "Half": "fp16", "Int8": "int8"}
"""Of the data types that are told apart."""


def inspect(
    tensorrt: Installed, plan: Any, image: tuple[str, Shapes] | None = None
) -> Mapping[str, int]:
    """Loads a built engine and counts its layers by what their first output is.

    image: name of the input with its smallest, best and largest shape, for an engine of an open
        batch, which tells no data types without one.
    Raises BackendError where it cannot be loaded, InputError where it is for other shapes.
    """
    module = tensorrt.module
    runtime = constructed(module, module.Runtime, listener(module))
    engine = checked(module, runtime.deserialize_cuda_engine(plan), "load the engine it built")
    inspector = checked(module, engine.create_engine_inspector(), "inspect the engine")
    if image is not None:
        name, shapes = image
        built_for = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0)]
        if built_for != list(shapes):
            batches = ",".join(str(shape[0]) for shape in built_for)
            raise InputError(f"the engine was built for --batch {batches}; say so")
        context = checked(module, engine.create_execution_context(), "run the engine it built")
        shape = shapes[1]
        checked(module, context.set_input_shape(name, shape), f"run the engine for {shape}")
        inspector.execution_context = context
    report = inspector.get_engine_information(module.LayerInformationFormat.JSON)
    return layer_types(checked(module, report or None, "describe the engine"))


def layer_types(report: str) -> Mapping[str, int]:
    """Counts the layers of an inspector's JSON by "Float", "Half" and "Int8"; others are left out.

    The type stands under "Format/Datatype" in 10.x, under "DataType" in 11.
    """
    counts: Counter[str] = Counter()
    for entry in json.loads(report)["Layers"]:
        outputs = entry.get("Outputs", []) if isinstance(entry, dict) else []
        for name, text in outputs[0].items() if outputs else ():
            if name.lower().endswith("datatype") and (found := _TYPES.search(str(text))):
                kind = found[0].capitalize()
                counts[_SAME.get(kind, kind)] += 1
    return counts
