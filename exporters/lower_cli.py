"""`rfdetr-edge export --precision`: its options, and the way from FP32 to less."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from exporters.common_cli import (
    ALL,
    MAX_DROP,
    MAX_IMAGES,
    calibration_images,
    refuse,
    task_of,
)
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.errors import InputError
from rfdetr_edge.metadata import Precision, Uncalibrated

if TYPE_CHECKING:
    from exporters.calibration import CalibrationSet
    from exporters.lossy import Judgement

OPTIONS = ("calibration", "validation", "max_drop")
"""Of lower precision alone; each is None where it is not given."""
_ALL_INTEGER = (
    "there is no all-integer precision: with residual sums, sampling places and attention products "
    "in 8 bits too, nano lost a third of its best pairs and took 1.2 times as long as in float32. "
    "The nearest is int8, whose linear layers and convolutions are integers"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --precision and what belongs to it, but for OPTIONS' --validation."""
    group = parser.add_argument_group("lower precision")
    group.add_argument(
        "--precision",
        type=_precision,
        choices=get_args(Precision),
        help="fp16; int8 with scales from --calibration; int8-dynamic, which finds scales as it "
        "runs; int8-weight-only, a small file that computes in float (default fp32, or of an "
        "engine that of the .onnx)",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help=MAX_DROP,
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="images that fix the scales of --precision int8: a folder, COCO annotations (.json) "
        "or .npy; others than those of --validation and --images",
    )
    group.add_argument(
        "--max-images",
        type=int,
        metavar="N",
        help=f"calibration images used (default {MAX_IMAGES})",
    )
    group.add_argument(
        "--observer",
        choices=("minmax", "percentile", "mse"),
        help="how int8 ranges follow from what is seen (default minmax)",
    )
    group.add_argument(
        "--target",
        choices=("cpu", "tensorrt"),
        help="whose int8 arithmetic an .onnx is written for (default cpu; of an engine tensorrt)",
    )


def refuse_what_means_nothing(arguments: argparse.Namespace) -> None:
    """Raises InputError for options that would change nothing, whatever the source."""
    if arguments.format != "onnx":
        refuse(arguments, "target", why="--format onnx")
    if arguments.precision not in ("int8", *get_args(Uncalibrated)):
        refuse(arguments, "target", why="--precision int8")
    if arguments.calibration is None:
        refuse(arguments, "observer", "max_images", why="--precision int8 with --calibration")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises InputError for options that do not fit a precision below FP32."""
    if arguments.raw:
        raise InputError("--raw is for fp32: lower precision starts from the cleaned graph")
    if arguments.no_verify:
        raise InputError("lower precision is never handed out unseen; leave --no-verify out")
    if arguments.precision != "int8":
        refuse(arguments, "calibration", why="--precision int8, whose scales need images")
    elif arguments.calibration is None:
        raise InputError("int8 needs images that fix its scales: give them with --calibration")
    if arguments.precision in get_args(Uncalibrated):
        if arguments.target == "tensorrt":
            raise InputError(
                f"TensorRT cannot run {arguments.precision}; give it --precision int8 "
                "--calibration DIR"
            )
        refuse(arguments, "target", why="--precision int8")
    _check_images(arguments)


def _check_images(arguments: argparse.Namespace) -> None:
    """Raises InputError for folders that hold no images, or not what AP needs."""
    from exporters.calibration import calibration_set

    if arguments.calibration is not None:
        calibration_images(arguments)
    given = arguments.validation or arguments.images
    if given is not None and calibration_set(given).annotations is not None:
        return
    if arguments.validation is not None:
        raise InputError(
            f"{arguments.validation} has no COCO annotations to measure AP with; give an "
            "annotated split, or --images for a comparison without AP"
        )
    if arguments.max_drop is not None:
        raise InputError("--max-drop needs annotated images: give them with --validation")


def lower(arguments: argparse.Namespace, source: Path) -> str:
    """Makes the artifact of an FP32 one, and says how it went."""
    from exporters.calibration import calibration_set

    given = arguments.validation or arguments.images or photo_paths(task_of(source))
    images = calibration_set(given, limit=ALL)
    return str(_LOWERING[arguments.precision](arguments, source, images))


def _lower_fp16(
    arguments: argparse.Namespace, source: Path, images: "CalibrationSet"
) -> "Judgement":
    from exporters.precision import export_fp16

    return export_fp16(source, arguments.output, images, max_drop=arguments.max_drop)


def _lower_int8(
    arguments: argparse.Namespace, source: Path, images: "CalibrationSet"
) -> "Judgement":
    from exporters.precision import export_int8

    return export_int8(
        source,
        arguments.output,
        calibration_images(arguments),
        images,
        target=arguments.target or "cpu",
        observer=arguments.observer or "minmax",
        max_drop=arguments.max_drop,
    )


def _lower_uncalibrated(
    arguments: argparse.Namespace, source: Path, images: "CalibrationSet"
) -> "Judgement":
    from exporters.precision import export_uncalibrated

    return export_uncalibrated(
        source,
        arguments.output,
        images,
        precision=arguments.precision,
        max_drop=arguments.max_drop,
    )


_LOWERING: Mapping[
    Precision, Callable[[argparse.Namespace, Path, "CalibrationSet"], "Judgement"]
] = {
    "fp16": _lower_fp16,
    "int8": _lower_int8,
    "int8-dynamic": _lower_uncalibrated,
    "int8-weight-only": _lower_uncalibrated,
}


def _precision(text: str) -> str:
    if "full" in text or "integer" in text:
        raise argparse.ArgumentTypeError(_ALL_INTEGER)
    return text
