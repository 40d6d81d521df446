"""`rfdetr-edge verify`."""

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.common_cli import ALL, MAX_DROP, refuse
from rfdetr_edge.commands import Command
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.variants import VARIANTS, Task

if TYPE_CHECKING:
    from exporters.lossy import Judgement
    from exporters.verify import Comparison
    from rfdetr_edge.backends import Session
    from rfdetr_edge.metadata import ModelMetadata


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
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help=MAX_DROP)


def _verify(arguments: argparse.Namespace) -> int:
    from rfdetr_edge.backends import open_session
    from rfdetr_edge.detector import Detector

    judged: Comparison | Judgement
    with closing(open_session(arguments.model)) as candidate:
        metadata = Detector.from_session(candidate).metadata
        exact = metadata.precision == "fp32"
        if exact:
            with closing(_reference(arguments.reference, metadata)) as reference:
                judged = _equal(arguments, reference, candidate, metadata.task)
    if not exact:  # closed by now: the gate opens it again, and a device may not hold it twice
        with closing(_reference(arguments.reference, metadata)) as reference:
            judged = _close(arguments, reference)
    if not judged.passed:
        raise ArtifactError(f"{arguments.model} differs from {arguments.reference}: {judged}")
    print(f"{arguments.model} {'equals' if exact else 'keeps to'} {arguments.reference}: {judged}")
    return 0


def _reference(path: Path, metadata: "ModelMetadata") -> "Session":
    from rfdetr_edge.backends import BACKENDS, open_session

    if path.suffix.lower() in {row.suffix for row in BACKENDS.values()}:
        return open_session(path)
    from exporters.torch_reference import TorchSession
    from trainer.checkpoint import load_checkpoint

    # a checkpoint need not say what it is, the artifact does
    variant = metadata.variant if metadata.variant in VARIANTS else None
    return TorchSession(load_checkpoint(path, variant=variant), metadata)


def _equal(
    arguments: argparse.Namespace, reference: "Session", candidate: "Session", task: Task
) -> "Comparison":
    """FP32 against its reference."""
    from exporters.verify import compare, gate_images

    why = "lower precision: an fp32 artifact must equal its reference, whatever there is to find"
    refuse(arguments, "annotations", "max_drop", why=why)
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
        refuse(arguments, "max_drop", why="--annotations, which AP is measured by")
        images = calibration_set(given, limit=ALL)
    elif arguments.images is None:
        raise InputError("--annotations needs the folder of their images: give it with --images")
    else:
        images = annotated_set(arguments.annotations, arguments.images)
    return judge(metadata, arguments.model, trial(reference, images), arguments.max_drop)


verify = Command(
    name="verify",
    help="compare what an artifact finds with what its reference finds",
    add_arguments=_verify_arguments,
    run=_verify,
)
