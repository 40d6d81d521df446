"""`rfdetr-edge export`: the options of every format, and which way leads to it."""

import argparse
import tempfile
from pathlib import Path

from exporters import lower_cli as lower
from exporters.common_cli import naming_lack_of_memory, refuse, tidy_when_terminated
from exporters.tflite import cli as tflite
from exporters.trt import cli as trt
from rfdetr_edge.commands import Command
from rfdetr_edge.errors import InputError
from rfdetr_edge.files import check_place
from rfdetr_edge.variants import VARIANTS

_ARTIFACTS = (".onnx", ".tflite", ".engine")
_OF_A_CHECKPOINT = ("shape", "opset", "variant", "antialias", "raw", "notes")
"""What an artifact has decided already; each is None where it is not given."""


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, help="checkpoint (.pth), or an FP32 artifact (.onnx, .tflite) to lower"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="artifact to write"
    )
    parser.add_argument(
        "--format",
        choices=("onnx", "tflite", "engine"),
        default="onnx",
        help="tflite is LiteRT's, of one image a run; engine is TensorRT's (default onnx)",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="input height and width in pixels (default: the checkpoint's resolution)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N|dynamic|MIN,OPT,MAX",
        help="batch size, or those of an engine (default 1, or that of the .onnx)",
    )
    parser.add_argument("--opset", type=int, help="ONNX opset, 17 to 20 (default 17)")
    parser.add_argument(
        "--variant", choices=VARIANTS, help="for a checkpoint that does not say what it is"
    )
    parser.add_argument(
        "--antialias",
        action=argparse.BooleanOptionalAction,
        help="resize of the artifact's images (default: as the checkpoint was trained; upstream's "
        "published checkpoints with antialias)",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        default=None,
        help="keep the graph as PyTorch traces it (fp32 only)",
    )
    parser.add_argument("--notes", help="free text that travels in the artifact's metadata")
    gate = parser.add_mutually_exclusive_group()
    gate.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images on which artifact and checkpoint are compared (default: the embedded photos)",
    )
    gate.add_argument(
        "--no-verify",
        action="store_true",
        help="write the artifact without comparing it; its metadata says so (fp32 and engines)",
    )
    gate.add_argument(
        "--validation",
        type=Path,
        metavar="DIR",
        help="annotated images (COCO) on which AP may drop by --max-drop (lower precision); "
        "int8-dynamic and int8-weight-only choose their layers on half of them",
    )
    lower.add_arguments(parser)
    tflite.add_arguments(parser)
    trt.add_arguments(parser)


@tidy_when_terminated()
def _export(arguments: argparse.Namespace) -> int:
    suffix = f".{arguments.format}"
    if arguments.output.suffix.lower() != suffix:
        raise InputError(f"the artifact must end in {suffix}, not {arguments.output.name!r}")
    if not arguments.print_trtexec:  # its command may be for another machine
        check_place(arguments.output)
    _refuse_what_means_nothing(arguments)
    if arguments.format == "engine":
        print(trt.export_engine(arguments, _export_artifact))
        return 0
    arguments.precision = arguments.precision or "fp32"
    print(f"{arguments.output}: {_export_artifact(arguments)}")
    return 0


def _refuse_what_means_nothing(arguments: argparse.Namespace) -> None:
    """Raises InputError for options that would change nothing; before any work."""
    if arguments.format == "tflite":
        tflite.check_arguments(arguments)
    else:
        refuse(arguments, *tflite.OPTIONS, why="--format tflite")
    if arguments.format != "engine":
        refuse(arguments, *trt.OPTIONS, why="--format engine")
        if isinstance(arguments.batch, tuple):
            raise InputError(
                "--batch min,opt,max is for --format engine; an .onnx takes N or dynamic"
            )
    lower.refuse_what_means_nothing(arguments)
    if arguments.source.suffix.lower() in _ARTIFACTS:
        batch = () if arguments.format == "engine" else ("batch",)
        why = f"a checkpoint; leave it out, {arguments.source} has it settled"
        refuse(arguments, *_OF_A_CHECKPOINT, *batch, why=why)


def _export_artifact(arguments: argparse.Namespace) -> str:
    """Writes an .onnx or .tflite, and says how it went."""
    suffix, source_suffix = f".{arguments.format}", arguments.source.suffix.lower()
    if arguments.format != "tflite" and source_suffix == ".tflite":
        raise InputError("an .onnx is made from a checkpoint (.pth), not from a .tflite artifact")
    if arguments.precision == "fp32":
        if source_suffix == suffix:
            raise InputError(f"{arguments.source} is an artifact already; --precision lowers it")
        refuse(arguments, *lower.OPTIONS, why="lower precision")
        return _export_fp32(arguments, arguments.output)
    lower.check_arguments(arguments)  # before an export, which takes its time
    if source_suffix == suffix:
        return lower.lower(arguments, arguments.source)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"fp32{suffix}"
        _export_fp32(arguments, source)
        return lower.lower(arguments, source)


def _export_fp32(arguments: argparse.Namespace, output: Path) -> str:
    if arguments.format == "tflite":
        return tflite.export_tflite(arguments, output, _export_onnx)
    return _export_onnx(arguments, output)


def _export_onnx(arguments: argparse.Namespace, output: Path) -> str:
    from exporters.onnx_export import OnnxOptions, export_onnx
    from exporters.verify import gate_images
    from trainer.checkpoint import load_checkpoint

    options = OnnxOptions(
        shape=tuple(arguments.shape) if arguments.shape else None,
        batch=1 if arguments.batch is None else arguments.batch,
        opset=17 if arguments.opset is None else arguments.opset,
        antialias=arguments.antialias,
        notes=arguments.notes,
        raw=bool(arguments.raw),
    )
    with naming_lack_of_memory():
        checkpoint = load_checkpoint(arguments.source, variant=arguments.variant)
        task = checkpoint.variant.task
        images = None if arguments.no_verify else gate_images(arguments.images, task)
        comparison = export_onnx(checkpoint, output, options, images=images)
    return "not compared (--no-verify)" if images is None else str(comparison)


def _batch(text: str) -> int | str | tuple[int, ...]:
    if text == "dynamic":
        return text
    try:
        sizes = tuple(map(int, text.split(",")))
    except ValueError:
        sizes = ()
    if len(sizes) not in (1, 3):
        raise argparse.ArgumentTypeError(f"must be a number, dynamic or MIN,OPT,MAX, not {text!r}")
    return sizes if len(sizes) == 3 else sizes[0]


export = Command(
    name="export",
    help="checkpoint to ONNX, TFLite or TensorRT, compared with it before it is handed out",
    add_arguments=_export_arguments,
    run=_export,
)
