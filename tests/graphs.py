"""Small real ONNX files that take part in tests as detectors.

Each 16x16 cell of the input is one query: its mean colour goes through one linear layer to a box
and through another to the class logits, so that results depend on the image and on nothing else.
"""

from pathlib import Path

import numpy as np
import pytest

from rfdetr_edge.classes import ClassTable, named_classes
from rfdetr_edge.keypoint_schema import KeypointSchema, class_keypoints
from rfdetr_edge.metadata import METADATA_KEY, InputSpec, ModelMetadata, Provenance
from rfdetr_edge.variants import MASK_STRIDE, Task

onnx = pytest.importorskip("onnx")
CELL = 16
FLOAT = onnx.TensorProto.FLOAT
CELLS = named_classes("background-last", ["RBC", "WBC", "Platelets"], [1, 2, 3])
SCHEMA = KeypointSchema(
    (
        class_keypoints(["left_end", "right_end", "middle"], ((0, 2), (2, 1))),
        class_keypoints([]),
        class_keypoints(["tip"]),
    )
)


def metadata(
    classes: ClassTable = CELLS,
    resolution: tuple[int, int] = (64, 96),
    num_select: int = 20,
    task: Task = "detection",
) -> ModelMetadata:
    """A document that fits the graph of the same classes and resolution."""
    return ModelMetadata(
        task=task,
        variant="tiny",
        precision="fp32",
        input=InputSpec(resolution, antialias=True),
        classes=classes,
        num_select=num_select,
        provenance=Provenance("0" * 64, "tests", "skipped"),
        mask_stride=MASK_STRIDE if task == "segmentation" else None,
        keypoints=SCHEMA if task == "keypoint" else None,
    )


def save_detector(
    path: Path,
    *,
    slots: int = len(CELLS),
    batch: int | None = 1,
    resolution: tuple[int, int] = (64, 96),
    outputs: tuple[str, str] = ("dets", "labels"),
    open_shapes: bool = False,
    masks: str | None = None,
    mask_stride: int = MASK_STRIDE,
    keypoints: str | None = None,
    metadata_json: str | None = None,
) -> Path:
    """Writes a detector of (height / 16) * (width / 16) queries.

    batch: None leaves it open. open_shapes: outputs declare no sizes, as some exporters do.
    masks, keypoints: the names of such outputs, where it gives them. A mask is where the colour,
    as far as it differs from the picture's mean, agrees with one that the query's cell chooses;
    keypoints are those of SCHEMA.
    """
    height, width = resolution
    queries = (height // CELL) * (width // CELL)
    dets, labels = outputs
    rng = np.random.default_rng(0)
    weights = {
        "to_box": rng.normal(size=(3, 4)),
        "to_scores": rng.normal(size=(3, slots)) * 3,
        "cells": np.array([0, 3, -1]),
    }
    make = onnx.helper.make_node
    nodes = [
        make("AveragePool", ["input"], ["pooled"], kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        make("Reshape", ["pooled", "cells"], ["flat"]),
        make("Transpose", ["flat"], ["colours"], perm=[0, 2, 1]),  # (B, Q, 3)
        make("MatMul", ["colours", "to_box"], ["raw"]),
        make("Sigmoid", ["raw"], [dets]),
        make("MatMul", ["colours", "to_scores"], [labels]),
    ]
    extra = {}
    if masks is not None:
        grid = (height // mask_stride, width // mask_stride)
        weights |= {
            "flatten": np.array([0, 3, -1]),
            "to_mask": rng.normal(size=(3, 3)),
            "grid": np.array([0, 0, *grid]),
        }
        window = {"kernel_shape": [mask_stride] * 2, "strides": [mask_stride] * 2}
        nodes += [
            make("AveragePool", ["input"], ["small"], **window),
            make("Reshape", ["small", "flatten"], ["places"]),  # (B, 3, h * w)
            make("ReduceMean", ["places"], ["average"], axes=[2]),
            make("Sub", ["places", "average"], ["contrast"]),
            make("MatMul", ["colours", "to_mask"], ["wanted"]),
            make("MatMul", ["wanted", "contrast"], ["agreement"]),
            make("Reshape", ["agreement", "grid"], [masks]),
        ]
        extra[masks] = [*grid]
    if keypoints is not None:
        columns = len(SCHEMA.classes) * SCHEMA.widest
        weights |= {
            "to_points": rng.normal(size=(3, columns * 8)),
            "columns": np.array([0, 0, columns, 8]),
        }
        nodes += [
            make("MatMul", ["colours", "to_points"], ["numbers"]),
            make("Reshape", ["numbers", "columns"], [keypoints]),
        ]
        extra[keypoints] = [columns, 8]
    size = "batch" if batch is None else batch
    inputs = {"input": [size, 3, height, width]}
    shapes = {dets: [size, queries, 4], labels: [size, queries, slots]}
    shapes |= {name: [size, queries, *last] for name, last in extra.items()}
    if open_shapes:
        shapes = {
            name: [size, *(f"{name}_{axis}" for axis in range(1, len(sizes)))]
            for name, sizes in shapes.items()
        }
    return save_graph(path, nodes, inputs, shapes, weights, metadata_json)


def save_classifier(path: Path) -> Path:
    """Writes an image model that is no detector: one score for each of three classes."""
    make = onnx.helper.make_node
    nodes = [make("GlobalAveragePool", ["input"], ["mean"]), make("Flatten", ["mean"], ["scores"])]
    return save_graph(path, nodes, {"input": [1, 3, 32, 32]}, {"scores": [1, 3]}, {}, None)


def save_graph(path, nodes, inputs, outputs, weights, metadata_json) -> Path:
    """Writes nodes as an ONNX file. inputs and outputs: name -> sizes, a text for an open one."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "test",
        [info(name, FLOAT, shape) for name, shape in inputs.items()],
        [info(name, FLOAT, shape) for name, shape in outputs.items()],
        [
            onnx.numpy_helper.from_array(
                array if array.dtype.kind == "i" else array.astype(np.float32), name
            )
            for name, array in weights.items()
        ],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    if metadata_json is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata_json})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
