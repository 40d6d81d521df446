"""`rfdetr-edge benchmark`, `rfdetr-edge synth` and `rfdetr-edge tune`."""

import argparse
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rfdetr_edge import demo
from rfdetr_edge.commands import Command
from rfdetr_edge.errors import BackendUnavailable, InputError
from rfdetr_edge.images import image_files
from rfdetr_edge.progress import Progress

if TYPE_CHECKING:
    from benchmarks.result import Accuracy, Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is compared, on what, and where the report goes."""
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="artifacts")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="photos to time with (default: the embedded ones)",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="DIR",
        help="also AP, on photos with _annotations.coco.json beside them",
    )
    parser.add_argument(
        "--runs",
        type=positive,
        default=1000,
        metavar="N",
        help="measured images of each model (default 1000; p99 needs as many)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of one run")
    parser.add_argument(
        "--camera", type=_rate, metavar="FPS", help="also as behind a camera of FPS frames a second"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="everything, with every sample taken"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page that needs nothing else")
    parser.add_argument(
        "--png",
        type=Path,
        metavar="FILE",
        help="a picture of AP against latency; needs --dataset and matplotlib",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints, and writes the files."""
    from benchmarks.contender import artifact_contenders
    from benchmarks.measure import Plan, measure
    from benchmarks.outputs import writable
    from benchmarks.table import text

    models = arguments.models
    contenders = artifact_contenders(models, arguments.threads)
    plan = Plan(photos(arguments.images), arguments.runs, arguments.camera)
    outputs = _outputs(arguments)
    with writable([path for path, _ in outputs], keep=models) as files:
        found = _accuracies(arguments)
        with Progress("rounds", plan.rounds) as progress:
            report = measure(contenders, plan, advance=progress.advance)
        if found:
            report = report.with_accuracies(arguments.dataset, found)
        for file, (_, render) in zip(files, outputs, strict=True):
            file.write_bytes(render(report))
    print(text(report))
    return 0


def photos(folder: Path | None) -> list[Path]:
    """Of a folder, or the embedded ones. Raises InputError for a folder that has none."""
    if folder is None:
        return demo.photo_paths()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return image_files(folder)


def _outputs(arguments: argparse.Namespace) -> list[tuple[Path, Callable[["Report"], bytes]]]:
    """Each file that was asked for, and what makes its bytes."""
    from benchmarks.page import page

    found: list[tuple[Path, Callable[[Report], bytes]]] = []
    if arguments.json is not None:
        found.append((arguments.json, lambda report: report.to_json().encode()))
    if arguments.html is not None:
        found.append((arguments.html, lambda report: page(report).encode()))
    if arguments.png is not None:
        if arguments.dataset is None:
            raise InputError("--png shows AP against latency; give --dataset too")
        if find_spec("matplotlib") is None:
            raise BackendUnavailable("--png needs matplotlib: pip install matplotlib")
        from benchmarks.plot import plot

        found.append((arguments.png, plot))
    return found


def _accuracies(arguments: argparse.Namespace) -> list["Accuracy"]:
    if arguments.dataset is None:
        return []
    from benchmarks.accuracy import accuracies, annotated_images  # needs the eval extra

    images = annotated_images(arguments.dataset)
    with Progress("images", images * len(arguments.models)) as progress:
        return accuracies(
            arguments.models,
            arguments.dataset,
            threads=arguments.threads,
            advance=progress.advance,
        )


def _synth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty folder to write")
    parser.add_argument(
        "--images", type=int, required=True, metavar="N", help="photos of all splits (80/10/10 %%)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="another seed gives other photos (0)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(640, 480),
        metavar=("W", "H"),
        help="of the photos, in pixels (640 480)",
    )


def _synth(arguments: argparse.Namespace) -> int:
    from benchmarks.synth.dataset import generate

    width, height = arguments.size
    with Progress("photos", arguments.images) as progress:
        counts = generate(
            arguments.folder,
            arguments.images,
            seed=arguments.seed,
            size=(height, width),
            advance=progress.advance,
        )
    splits = ", ".join(
        f"{split} {count.images} photos with {count.parts} parts" for split, count in counts.items()
    )
    print(f"{arguments.folder}: {splits}")
    return 0


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="artifact (.onnx)")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="photos that every setting must give the same results on (default: the embedded ones)",
    )
    parser.add_argument(
        "--runs",
        type=positive,
        default=60,
        metavar="N",
        help="measured runs of each of two settings that are compared (default 60, at least 30)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="use N threads at most (default: all cores)"
    )


def _tune(arguments: argparse.Namespace) -> int:
    from benchmarks.tune import tune
    from rfdetr_edge.tuning import tuning_path

    if not arguments.model.exists():
        raise InputError(f"{arguments.model}: no such file or folder")
    print(tune(arguments.model, arguments.images, arguments.runs, arguments.threads))
    print(f"written: {tuning_path(arguments.model)}")
    return 0


def positive(text: str) -> int:
    """For argparse: a number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


benchmark = Command(
    name="benchmark",
    help="time artifacts side by side, from an image file to detections",
    add_arguments=add_arguments,
    run=run,
)
synth = Command(
    name="synth",
    help="write a data set of metal parts on a conveyor belt",
    add_arguments=_synth_arguments,
    run=_synth,
)
tune = Command(
    name="tune",
    help="find the settings of ONNX Runtime that run an artifact fastest on this machine's CPU",
    add_arguments=_tune_arguments,
    run=_tune,
)
