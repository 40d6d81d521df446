"""`rfdetr-edge export --format engine`: its options, and the way from a checkpoint to an engine."""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from exporters.common_cli import refuse
from rfdetr_edge.engine_record import Family
from rfdetr_edge.errors import BackendUnavailable, InputError

OPTIONS = ("workspace", "timing_cache", "dialect", "print_trtexec", "adopt")
"""Of engines alone; each is None where it is not given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds OPTIONS."""
    group = parser.add_argument_group("TensorRT engines (--format engine)")
    group.add_argument(
        "--dialect",
        choices=("auto", *get_args(Family)),
        help="whose engine (default auto: TensorRT if it is installed, else TensorRT-RTX)",
    )
    group.add_argument(
        "--workspace", type=int, metavar="MIB", help="memory for a layer to work in (default: all)"
    )
    group.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="keeps what was timed, so that the next build on this GPU is faster",
    )
    group.add_argument(
        "--adopt",
        action="store_true",
        default=None,
        help="build nothing: -o is an engine that trtexec built of this .onnx; compare it and "
        "write its record",
    )
    group.add_argument(
        "--print-trtexec",
        action="store_true",
        default=None,
        help="build nothing, print the commands that would; the .onnx is made if need be",
    )


def export_engine(
    arguments: argparse.Namespace, make_onnx: Callable[[argparse.Namespace], str]
) -> str:
    """The ONNX file of the wanted precision, which is made if need be, then its engine.

    make_onnx: writes an artifact for the same arguments with --format onnx, and says how it went.
    """
    if arguments.source.suffix.lower() == ".onnx" and find_spec("onnx") is None:
        raise BackendUnavailable("onnx is not installed: pip install 'rfdetr-edge[engine]'")
    from exporters.trt.build import check_options
    from exporters.trt.device import device
    from exporters.trt.dialect import Choice, installed
    from exporters.trt.engine import adopt_engine, export_engine
    from exporters.trt.options import EngineOptions
    from exporters.trt.source import look, read_source
    from exporters.trt.trtexec import commands, follow_up

    if arguments.adopt:
        _check_adoption(arguments)
    sizes, printing = arguments.batch, arguments.print_trtexec
    if sizes == "dynamic":
        raise InputError("an engine is built for a range of batches: say --batch min,opt,max")
    batch = (sizes,) * 3 if isinstance(sizes, int) else sizes
    options = EngineOptions(batch, arguments.workspace, arguments.timing_cache)
    dialect: Choice = arguments.dialect or "auto"
    tensorrt = None if printing else installed(dialect)
    if tensorrt is not None:  # before the export, which takes its time
        check_options(tensorrt, options, has_gpu=device() is not None)

    lines = []
    source = None
    if arguments.source.suffix.lower() == ".onnx":
        source = read_source(arguments.source)
        options.fitting_batch(source.batch)
    precision = arguments.precision or (source.precision if source else "fp32")
    if source is not None and source.precision == precision:
        _refuse_lowering(arguments, precision)
    elif source is not None and arguments.adopt:
        raise InputError(
            f"{source.path} is {source.precision}; --adopt takes the .onnx that the engine was "
            "built of"
        )
    elif source is not None and precision == "fp32":
        raise InputError(
            f"{source.path} is {source.precision}; give the FP32 artifact it was made from, or "
            "leave --precision out"
        )
    else:
        made = arguments.output.with_name(f"{arguments.output.name}.onnx")
        if made.resolve() == arguments.source.resolve():
            raise InputError(f"{made} would be written over; give the engine another name")
        lines.append(f"{made}: {make_onnx(_for_onnx(arguments, precision, made))}")
        source = read_source(made)
    if tensorrt is None:
        look(source, precision, arguments.images, verified=not arguments.no_verify)
        printed = commands(source.path, arguments.output, source.image, options, dialect)
        return f"{printed}\n{follow_up(source.path, arguments.output, options, dialect)}"
    verified = not arguments.no_verify
    make = adopt_engine if arguments.adopt else export_engine
    seen = make(
        source,
        arguments.output,
        tensorrt,
        precision,
        options,
        images=arguments.images,
        verified=verified,
    )
    return "\n".join([*lines, f"{arguments.output}: {seen}"])


def _check_adoption(arguments: argparse.Namespace) -> None:
    why = "building an engine; --adopt takes one that is there"
    refuse(arguments, "workspace", "timing_cache", "print_trtexec", why=why)
    if arguments.source.suffix.lower() != ".onnx":
        raise InputError(f"{arguments.source} is no .onnx; --adopt takes that of the engine")
    if not arguments.output.is_file():
        raise InputError(f"{arguments.output} is not there; build it with trtexec first")


def _refuse_lowering(arguments: argparse.Namespace, precision: str) -> None:
    for name in ("calibration", "validation", "max_drop"):
        if vars(arguments)[name] is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for making an artifact of lower precision; "
                f"{arguments.source} is {precision} already"
            )


def _for_onnx(arguments: argparse.Namespace, precision: str, output: Path) -> argparse.Namespace:
    """The same as options of --format onnx."""
    changed = {
        **dict.fromkeys(OPTIONS),
        "format": "onnx",
        "output": output,
        "precision": precision,
        "target": "tensorrt",
        "batch": "dynamic" if isinstance(arguments.batch, tuple) else arguments.batch,
    }
    return argparse.Namespace(**{**vars(arguments), **changed})
