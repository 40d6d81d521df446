"""`rfdetr-edge benchmark` and `rfdetr-edge synth`."""

import argparse
import json
from pathlib import Path
from typing import Any

from rfdetr_edge.commands import Command
from rfdetr_edge.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--runs and --json."""
    parser.add_argument(
        "--runs",
        type=_positive,
        default=1000,
        metavar="N",
        help="measured runs of each stage (default 1000; p99 needs as many)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints."""
    from benchmarks.stages import measure_on_one_thread

    report = measure_on_one_thread(arguments.runs)
    print(json.dumps(report) if arguments.json else table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    """The report as text: the environment, then one line a stage; "-" where too few runs."""
    environment = [f"{name}: {value}" for name, value in report["environment"].items()]
    header = f"{'stage':<44} {'warm-up':>8} {'n':>6} {'median ms':>10} {'p90 ms':>8} {'p99 ms':>8}"
    rows = [
        f"{row['stage']:<44} {row['warm_up']:>8} {row['n']:>6} {row['median_ms']:>10.3f} "
        f"{row['p90_ms']:>8.3f} {_milliseconds(row['p99_ms']):>8}"
        for row in report["stages"]
    ]
    return "\n".join([*environment, "", header, *rows])


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


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


benchmark = Command(
    name="benchmark",
    help="measure the latency of the stages around the model",
    add_arguments=add_arguments,
    run=run,
)
synth = Command(
    name="synth",
    help="write a data set of metal parts on a conveyor belt",
    add_arguments=_synth_arguments,
    run=_synth,
)
