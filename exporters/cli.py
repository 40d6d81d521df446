"""`rfdetr-edge export` and `rfdetr-edge verify`."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rfdetr_edge.commands import Command
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.variants import VARIANTS


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint (.pth)")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="artifact to write (.onnx)"
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="input height and width in pixels (default: the checkpoint's resolution)",
    )
    parser.add_argument(
        "--batch", type=_batch, default=1, metavar="N|dynamic", help="batch size (default 1)"
    )
    parser.add_argument("--opset", type=int, default=17, help="ONNX opset, 17 to 20 (default 17)")
    parser.add_argument(
        "--variant", choices=VARIANTS, help="for a checkpoint that does not say what it is"
    )
    parser.add_argument(
        "--antialias",
        action=argparse.BooleanOptionalAction,
        help="resize of the artifact's images (default: as the checkpoint was trained; upstream's "
        "published checkpoints with antialias)",
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
        help="write the artifact without comparing it; its metadata says so",
    )


def _export(arguments: argparse.Namespace) -> int:
    from exporters.onnx_export import OnnxOptions, export_onnx
    from exporters.verify import gate_images
    from trainer.checkpoint import load_checkpoint

    if arguments.output.suffix.lower() != ".onnx":
        raise InputError(f"the artifact must end in .onnx, not {arguments.output.name!r}")
    options = OnnxOptions(
        shape=tuple(arguments.shape) if arguments.shape else None,
        batch=arguments.batch,
        opset=arguments.opset,
        antialias=arguments.antialias,
        notes=arguments.notes,
    )
    with _naming_lack_of_memory():
        checkpoint = load_checkpoint(arguments.checkpoint, variant=arguments.variant)
        task = checkpoint.variant.task
        images = None if arguments.no_verify else gate_images(arguments.images, task)
        comparison = export_onnx(checkpoint, arguments.output, options, images=images)
    print(f"{arguments.output}: {'not compared (--no-verify)' if images is None else comparison}")
    return 0


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference", type=Path, help="checkpoint (.pth) or artifact to compare with"
    )
    parser.add_argument("model", type=Path, help="artifact to judge")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="images (default: the embedded photos)"
    )


def _verify(arguments: argparse.Namespace) -> int:
    from exporters.verify import compare, gate_images
    from rfdetr_edge.backends import BACKENDS, Session, open_session
    from rfdetr_edge.detector import Detector

    candidate = open_session(arguments.model)
    metadata = Detector.from_session(candidate).metadata
    images = gate_images(arguments.images, metadata.task)
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
    comparison = compare(reference, candidate, images)
    if not comparison.passed:
        raise ArtifactError(f"{arguments.model} differs from {arguments.reference}: {comparison}")
    print(f"{arguments.model} equals {arguments.reference}: {comparison}")
    return 0


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


def _batch(text: str) -> int | str:
    if text == "dynamic":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or dynamic, not {text!r}") from None


export = Command(
    name="export",
    help="checkpoint to ONNX, compared with the checkpoint before it is handed out",
    add_arguments=_export_arguments,
    run=_export,
)
verify = Command(
    name="verify",
    help="compare what an artifact finds with what its reference finds",
    add_arguments=_verify_arguments,
    run=_verify,
)
