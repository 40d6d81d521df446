"""`rfdetr-edge export` and `rfdetr-edge verify`."""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from exporters.trt import cli as trt
from rfdetr_edge.commands import Command
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.metadata import Precision, Uncalibrated
from rfdetr_edge.variants import VARIANTS, Task

if TYPE_CHECKING:
    from exporters.calibration import CalibrationSet
    from exporters.lossy import Judgement
    from exporters.verify import Comparison
    from rfdetr_edge.backends import Session

_ALL = 1_000_000  # images of a gate: more than a folder holds
_ALL_INTEGER = (
    "there is no all-integer precision: with residual sums, sampling places and attention products "
    "in 8 bits too, nano lost a third of its best pairs and took 1.2 times as long as in float32. "
    "The nearest is int8, whose linear layers and convolutions are integers"
)
_MAX_DROP = "AP that may be lost, in points of 100 (default: 0.1 for fp16, 0.5 for all of int8)"


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
        "--converter",
        choices=("auto", "onnx2tf", "litert-torch"),
        default="auto",
        help="to tflite; auto is litert-torch for a checkpoint, onnx2tf for an .onnx",
    )
    parser.add_argument(
        "--onnx2tf-python",
        type=Path,
        metavar="PATH",
        help="the interpreter that has onnx2tf, which `make onnx2tf-venv` makes",
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
        help="write the artifact without comparing it; its metadata says so (fp32 only)",
    )
    gate.add_argument(
        "--validation",
        type=Path,
        metavar="DIR",
        help="annotated images (COCO) on which AP may drop by --max-drop (lower precision); "
        "int8-dynamic and int8-weight-only choose their layers on half of them",
    )
    lower = parser.add_argument_group("lower precision")
    lower.add_argument(
        "--precision",
        type=_precision,
        choices=get_args(Precision),
        help="fp16; int8 with scales from --calibration; int8-dynamic, which finds scales as it "
        "runs; int8-weight-only, a small file that computes in float (default fp32, or of an "
        "engine that of the .onnx)",
    )
    lower.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help=_MAX_DROP,
    )
    lower.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="images that fix the scales of --precision int8: a folder, COCO annotations (.json) "
        "or .npy; others than those of --validation and --images",
    )
    lower.add_argument(
        "--max-images", type=int, default=100, help="calibration images used (default 100)"
    )
    lower.add_argument(
        "--observer",
        choices=("minmax", "percentile", "mse"),
        default="minmax",
        help="how int8 ranges follow from what is seen (default minmax)",
    )
    lower.add_argument(
        "--target",
        choices=("cpu", "tensorrt"),
        default="cpu",
        help="whose int8 arithmetic an .onnx is written for (default cpu; of an engine tensorrt)",
    )
    trt.add_arguments(parser)


def _export(arguments: argparse.Namespace) -> int:
    suffix = f".{arguments.format}"
    if arguments.output.suffix.lower() != suffix:
        raise InputError(f"the artifact must end in {suffix}, not {arguments.output.name!r}")
    if arguments.format != "tflite":
        _refuse(arguments, "onnx2tf_python", why="--format tflite")
        if arguments.converter != "auto":
            raise InputError("--converter is for --format tflite")
    if arguments.format == "engine":
        print(trt.export_engine(arguments, _export_artifact))
        return 0
    _refuse(arguments, *trt.OPTIONS, why="--format engine")
    if isinstance(arguments.batch, tuple):
        raise InputError("--batch min,opt,max is for --format engine; an .onnx takes N or dynamic")
    arguments.precision = arguments.precision or "fp32"
    print(f"{arguments.output}: {_export_artifact(arguments)}")
    return 0


def _export_artifact(arguments: argparse.Namespace) -> str:
    """Writes an .onnx or .tflite, and says how it went."""
    suffix, source_suffix = f".{arguments.format}", arguments.source.suffix.lower()
    make = _export_tflite if arguments.format == "tflite" else _export_onnx
    is_artifact = source_suffix == suffix
    if arguments.format == "tflite":
        _refuse_of_onnx(arguments)
    elif source_suffix == ".tflite":
        raise InputError("an .onnx is made from a checkpoint (.pth), not from a .tflite artifact")
    if arguments.precision == "fp32":
        if is_artifact:
            raise InputError(f"{arguments.source} is an artifact already; --precision lowers it")
        _refuse(arguments, "calibration", "validation", "max_drop", why="lower precision")
        return make(arguments, arguments.output)
    # before the export of a checkpoint, which takes its time
    if arguments.raw:
        raise InputError("--raw is for fp32: lower precision starts from the cleaned graph")
    if arguments.no_verify:
        raise InputError("lower precision is never handed out unseen; leave --no-verify out")
    if arguments.precision != "int8":
        _refuse(arguments, "calibration", why="--precision int8, whose scales need images")
    elif arguments.calibration is None:
        raise InputError("int8 needs images that fix its scales: give them with --calibration")
    if arguments.target == "tensorrt" and arguments.precision in get_args(Uncalibrated):
        raise InputError(
            f"TensorRT cannot run {arguments.precision}; give it --precision int8 --calibration DIR"
        )
    if is_artifact:
        return _lower(arguments, arguments.source)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"fp32{suffix}"
        make(arguments, source)
        return _lower(arguments, source)


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
        raw=arguments.raw,
    )
    with _naming_lack_of_memory():
        checkpoint = load_checkpoint(arguments.source, variant=arguments.variant)
        task = checkpoint.variant.task
        images = None if arguments.no_verify else gate_images(arguments.images, task)
        comparison = export_onnx(checkpoint, output, options, images=images)
    return "not compared (--no-verify)" if images is None else str(comparison)


def _refuse_of_onnx(arguments: argparse.Namespace) -> None:
    """Options that mean nothing to a .tflite."""
    _refuse(arguments, "opset", why="--format onnx")
    if arguments.batch not in (None, 1) or arguments.raw:
        raise InputError("--batch and --raw are for --format onnx; a .tflite takes one image a run")
    if arguments.target == "tensorrt":
        raise InputError("TensorRT reads no .tflite; make an .onnx for it (--format onnx)")


def _export_tflite(arguments: argparse.Namespace, output: Path) -> str:
    is_artifact = arguments.source.suffix.lower() == ".onnx"
    if arguments.converter == "litert-torch" and is_artifact:
        raise InputError("litert-torch converts checkpoints (.pth); onnx2tf converts .onnx")
    if arguments.converter == "onnx2tf" or is_artifact:
        seen = _by_onnx2tf(arguments, output)
    else:
        seen = _by_litert_torch(arguments, output)
    compared = [f"{comparison} ({provider})" for provider, comparison in seen.items()]
    return "\n  ".join(compared) or "not compared (--no-verify)"


def _by_onnx2tf(arguments: argparse.Namespace, output: Path) -> "dict[str, Comparison]":
    from exporters.tflite.from_onnx import export_onnx_to_tflite
    from exporters.tflite.onnx2tf import find_onnx2tf
    from exporters.verify import gate_images

    # before the export of a checkpoint, which takes its time
    onnx2tf = find_onnx2tf(arguments.onnx2tf_python)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.source.suffix.lower() == ".onnx":
            _refuse(arguments, "shape", "antialias", "notes", "variant", why="a checkpoint")
            source = arguments.source
        else:
            source = Path(folder) / "fp32.onnx"
            _export_onnx(arguments, source)
        images = None if arguments.no_verify else gate_images(arguments.images, _task(source))
        return export_onnx_to_tflite(source, output, onnx2tf, images=images, step=_say_step)


def _by_litert_torch(arguments: argparse.Namespace, output: Path) -> "dict[str, Comparison]":
    _refuse(arguments, "onnx2tf_python", why="--converter onnx2tf, and for an .onnx")
    _quiet_converter()
    from exporters.tflite.export import TfliteOptions, export_tflite
    from exporters.verify import gate_images
    from trainer.checkpoint import load_checkpoint

    options = TfliteOptions(
        shape=tuple(arguments.shape) if arguments.shape else None,
        antialias=arguments.antialias,
        notes=arguments.notes,
    )
    with _naming_lack_of_memory():
        checkpoint = load_checkpoint(arguments.source, variant=arguments.variant)
        task = checkpoint.variant.task
        images = None if arguments.no_verify else gate_images(arguments.images, task)
        return export_tflite(checkpoint, output, options, images=images, step=_say_step)


def _say_step(step: str) -> None:
    """Where somebody is waiting."""
    if sys.stderr.isatty():
        print(f"{step} ...", file=sys.stderr)


def _quiet_converter() -> None:
    """Keeps what litert-torch and its libraries say of themselves off stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _lower(arguments: argparse.Namespace, source: Path) -> str:
    from exporters.calibration import calibration_set

    given = arguments.validation or arguments.images or photo_paths(_task(source))
    images = calibration_set(given, limit=_ALL)
    if arguments.validation is not None and images.annotations is None:
        raise InputError(
            f"{arguments.validation} has no COCO annotations to measure AP with; give an "
            "annotated split, or --images for a comparison without AP"
        )
    if arguments.max_drop is not None and images.annotations is None:
        raise InputError("--max-drop needs annotated images: give them with --validation")
    return str(_LOWERING[arguments.precision](arguments, source, images))


def _lower_fp16(
    arguments: argparse.Namespace, source: Path, images: "CalibrationSet"
) -> "Judgement":
    from exporters.precision import export_fp16

    return export_fp16(source, arguments.output, images, max_drop=arguments.max_drop)


def _lower_int8(
    arguments: argparse.Namespace, source: Path, images: "CalibrationSet"
) -> "Judgement":
    from exporters.calibration import calibration_set
    from exporters.precision import export_int8

    return export_int8(
        source,
        arguments.output,
        calibration_set(arguments.calibration, limit=arguments.max_images),
        images,
        target=arguments.target,
        observer=arguments.observer,
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


def _task(artifact: Path) -> Task:
    from rfdetr_edge.backends import open_session, proving_providers
    from rfdetr_edge.detector import Detector

    session = open_session(artifact, provider=proving_providers(artifact)[0])
    try:
        return Detector.from_session(session).metadata.task
    finally:
        session.close()


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference", type=Path, help="checkpoint (.pth) or artifact to compare with"
    )
    parser.add_argument("model", type=Path, help="artifact to judge")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="images (default: the embedded photos)"
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="JSON",
        help="COCO annotations of the images, to measure AP (lower precision)",
    )
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help=_MAX_DROP)


def _verify(arguments: argparse.Namespace) -> int:
    from rfdetr_edge.backends import BACKENDS, Session, open_session
    from rfdetr_edge.detector import Detector

    candidate = open_session(arguments.model)
    metadata = Detector.from_session(candidate).metadata
    reference: Session
    if arguments.reference.suffix.lower() in {row.suffix for row in BACKENDS.values()}:
        reference = open_session(arguments.reference)
    else:
        from exporters.torch_reference import TorchSession
        from trainer.checkpoint import load_checkpoint

        # a checkpoint need not say what it is, the artifact does
        variant = metadata.variant if metadata.variant in VARIANTS else None
        checkpoint = load_checkpoint(arguments.reference, variant=variant)
        reference = TorchSession(checkpoint, metadata)
    judged: Comparison | Judgement
    exact = metadata.precision == "fp32"
    if exact:
        judged = _equal(arguments, reference, candidate, metadata.task)
    else:
        judged = _close(arguments, reference)
    if not judged.passed:
        raise ArtifactError(f"{arguments.model} differs from {arguments.reference}: {judged}")
    print(f"{arguments.model} {'equals' if exact else 'keeps to'} {arguments.reference}: {judged}")
    return 0


def _equal(
    arguments: argparse.Namespace, reference: "Session", candidate: "Session", task: Task
) -> "Comparison":
    """FP32 against its reference."""
    from exporters.verify import compare, gate_images

    why = "lower precision: an fp32 artifact must equal its reference, whatever there is to find"
    _refuse(arguments, "annotations", "max_drop", why=why)
    return compare(reference, candidate, gate_images(arguments.images, task))


def _close(arguments: argparse.Namespace, reference: "Session") -> "Judgement":
    """Lower precision against its reference."""
    from exporters.calibration import annotated_set, calibration_set
    from exporters.lossy import judge
    from exporters.trials import trial
    from rfdetr_edge.detector import Detector

    metadata = Detector.from_session(reference).metadata
    given = arguments.images or photo_paths(metadata.task)
    if arguments.annotations is None:
        images = calibration_set(given, limit=_ALL)
    elif arguments.images is None:
        raise InputError("--annotations needs the folder of their images: give it with --images")
    else:
        images = annotated_set(arguments.annotations, arguments.images)
    return judge(metadata, arguments.model, trial(reference, images), arguments.max_drop)


def _refuse(arguments: argparse.Namespace, *names: str, why: str) -> None:
    """Options that are for something else."""
    for name in names:
        if vars(arguments)[name] is not None:
            raise InputError(f"--{name.replace('_', '-')} is for {why}")


@contextmanager
def _naming_lack_of_memory() -> Iterator[None]:
    """torch turns it into a RuntimeError of several lines."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            "there is not enough memory for this shape and batch; choose a smaller --shape or "
            "--batch, or --batch dynamic"
        ) from None


def _precision(text: str) -> str:
    if "full" in text or "integer" in text:
        raise argparse.ArgumentTypeError(_ALL_INTEGER)
    return text


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
verify = Command(
    name="verify",
    help="compare what an artifact finds with what its reference finds",
    add_arguments=_verify_arguments,
    run=_verify,
)
