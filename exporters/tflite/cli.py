"""`rfdetr-edge export --format tflite`: its options, and the two ways to a file in FP32."""

import argparse
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.common_cli import calibration_images, naming_lack_of_memory, refuse, task_of
from rfdetr_edge.errors import InputError

if TYPE_CHECKING:
    from exporters.verify import Comparison

OPTIONS = ("converter", "onnx2tf_python")
"""Of TFLite alone; each is None where it is not given."""
MakeOnnx = Callable[[argparse.Namespace, Path], str]
"""Writes an FP32 .onnx of the same checkpoint, and says how it went."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds OPTIONS."""
    group = parser.add_argument_group("TFLite (--format tflite)")
    group.add_argument(
        "--converter",
        choices=("auto", "onnx2tf", "litert-torch"),
        help="default auto: litert-torch for a checkpoint, onnx2tf for an .onnx",
    )
    group.add_argument(
        "--onnx2tf-python",
        type=Path,
        metavar="PATH",
        help="the interpreter that has onnx2tf, which `make onnx2tf-venv` makes",
    )


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises InputError for options that mean nothing to a .tflite."""
    refuse(arguments, "opset", why="--format onnx")
    if arguments.batch not in (None, 1) or arguments.raw:
        raise InputError("--batch and --raw are for --format onnx; a .tflite takes one image a run")
    if arguments.target == "tensorrt":
        raise InputError("TensorRT reads no .tflite; make an .onnx for it (--format onnx)")
    source = arguments.source.suffix.lower()
    if source == ".tflite":
        refuse(arguments, *OPTIONS, why="what must be converted; the source is a .tflite")
    if source != ".onnx" and arguments.converter != "onnx2tf":
        refuse(arguments, "onnx2tf_python", why="--converter onnx2tf, or an .onnx")
    if source == ".onnx" and arguments.converter == "litert-torch":
        raise InputError("litert-torch converts checkpoints (.pth); onnx2tf converts .onnx")


def export_tflite(arguments: argparse.Namespace, output: Path, make_onnx: MakeOnnx) -> str:
    """Writes an FP32 .tflite, and says how it went."""
    is_artifact = arguments.source.suffix.lower() == ".onnx"
    if arguments.converter == "onnx2tf" or is_artifact:
        seen = _by_onnx2tf(arguments, output, make_onnx)
    else:
        seen = _by_litert_torch(arguments, output)
    compared = [f"{comparison} ({provider})" for provider, comparison in seen.items()]
    return "\n  ".join(compared) or "not compared (--no-verify)"


def _by_onnx2tf(
    arguments: argparse.Namespace, output: Path, make_onnx: MakeOnnx
) -> "dict[str, Comparison]":
    from exporters.tflite.from_onnx import export_onnx_to_tflite
    from exporters.tflite.onnx2tf import find_onnx2tf
    from exporters.verify import gate_images

    # before the export of a checkpoint, which takes its time
    onnx2tf = find_onnx2tf(arguments.onnx2tf_python)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.source.suffix.lower() == ".onnx":
            source = arguments.source
        else:
            source = Path(folder) / "fp32.onnx"
            make_onnx(arguments, source)
        images = None if arguments.no_verify else gate_images(arguments.images, task_of(source))
        calibration = None
        if arguments.precision == "int8":  # of the images that its ranges will be of
            calibration = calibration_images(arguments).split()[0]
        return export_onnx_to_tflite(
            source, output, onnx2tf, images=images, calibration=calibration
        )


def _by_litert_torch(arguments: argparse.Namespace, output: Path) -> "dict[str, Comparison]":
    refuse(arguments, "onnx2tf_python", why="--converter onnx2tf, and for an .onnx")
    _quiet_converter()
    from exporters.tflite.export import TfliteOptions, export_tflite
    from exporters.verify import gate_images
    from trainer.checkpoint import load_checkpoint

    options = TfliteOptions(
        shape=tuple(arguments.shape) if arguments.shape else None,
        antialias=arguments.antialias,
        notes=arguments.notes,
    )
    with naming_lack_of_memory():
        checkpoint = load_checkpoint(arguments.source, variant=arguments.variant)
        task = checkpoint.variant.task
        images = None if arguments.no_verify else gate_images(arguments.images, task)
        return export_tflite(checkpoint, output, options, images=images)


def _quiet_converter() -> None:
    """Keeps what litert-torch and its libraries say of themselves off stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
