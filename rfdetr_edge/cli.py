"""The command line: parse, call one function, print.

    rfdetr-edge predict SOURCE... | evaluate MODEL | info MODEL | doctor | demo | ...

Exit codes:
    0    all done
    1    something failed on the way: a broken artifact, a missing library, a full disk, some of
         several inputs that could not be read (the rest is done), or a finding of `doctor`
    2    the call, or its only input, cannot be used; nothing was written
    130  interrupted; nothing was written (a camera's recording ends so, with 0, and is kept)

Expected errors are one line on stderr, never a traceback. The commands of other packages come from
the entry point group `rfdetr_edge.commands`.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import rfdetr_edge
from rfdetr_edge import demo, report
from rfdetr_edge.annotations import read_annotations
from rfdetr_edge.classes import LAYOUTS
from rfdetr_edge.commands import Command, contributed, install_hint
from rfdetr_edge.detections import Detections
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import InputError, RFDETREdgeError
from rfdetr_edge.f1 import best_threshold
from rfdetr_edge.pipeline import detect
from rfdetr_edge.progress import Progress
from rfdetr_edge.sinks import (
    Sink,
    annotated,
    coco_image_ids,
    coco_results,
    json_lines,
    json_stream,
)
from rfdetr_edge.sources import Frame, ImageSource, Source, open_sources, total_length


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. `argv`: arguments, None for the process's own.

    Like every argparse program it raises SystemExit for --help, --version and unknown arguments.
    """
    _quiet()
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        run: Callable[[argparse.Namespace], int] = arguments.run
        code = run(arguments)
        sys.stdout.flush()
    except InputError as error:
        return _fail(str(error), 2)
    except RFDETREdgeError as error:
        return _fail(str(error), 1)
    except ModuleNotFoundError as error:
        hint = install_hint(error)
        if hint is None:
            raise
        return _fail(hint, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _discard_stdout()
        return 1
    except OSError as error:
        if error.errno is None:
            return _fail(str(error), 1)
        if error.filename is None:  # errors of files name them, so this is stdout's own
            _discard_stdout()
        return _fail(f"{error.filename or 'stdout'}: {error.strerror}", 1)
    return code


def _quiet() -> None:
    """Keeps OpenCV's logs off stderr, and names that stdout cannot encode from being errors."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rfdetr-edge", description="RF-DETR object detection on the device."
    )
    parser.add_argument(
        "--version", action="version", version=f"rfdetr-edge {rfdetr_edge.__version__}"
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    # our own commands must not wait for, or stumble over, those of other packages
    own = bool(argv) and argv[0] in {command.name for command in COMMANDS}
    for command in COMMANDS if own else (*COMMANDS, *contributed()):
        subparser = subparsers.add_parser(
            command.name, help=command.help, description=f"{command.help}."
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser.parse_args(argv)


def _fail(message: str, code: int) -> int:
    print(f"rfdetr-edge: error: {message}", file=sys.stderr)
    return code


def _discard_stdout() -> None:
    """What is still buffered for a closed or full stdout must not fail again when Python exits."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--provider", metavar="NAME", help="what executes the artifact: cpu, cuda, ..."
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of one run")
    parser.add_argument(
        "--device-preprocess", action="store_true", help="preprocess on the GPU (.engine alone)"
    )
    parser.add_argument(
        "--class-layout",
        choices=LAYOUTS,
        help="what the class slots mean, for an artifact that does not say so",
    )
    parser.add_argument(
        "--classes",
        type=lambda text: tuple(name.strip() for name in text.split(",")),
        metavar="A,B",
        help="names of the classes in order, without background",
    )


def _open_detector(path: Path, arguments: argparse.Namespace) -> Detector:
    return Detector(
        path,
        provider=arguments.provider,
        threads=arguments.threads,
        class_layout=arguments.class_layout,
        class_names=arguments.classes,
        device_preprocess=arguments.device_preprocess,
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return path


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="photo, video, folder, pattern such as 'shots/*.jpg', or camera index",
    )
    parser.add_argument("--model", type=Path, metavar="FILE", help="artifact; default: embedded")
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="T", help="keep confidence above T (0.5)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="one JSON object a frame, a line each; - for stdout"
    )
    parser.add_argument(
        "--coco",
        type=Path,
        metavar="FILE",
        help="COCO results of photos; image ids are the file names where all are numbers, "
        "else 1, 2, ... in order",
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="photos and videos with the results drawn on"
    )
    parser.add_argument("--allow-urls", action="store_true", help="fetch photos from http(s)")
    _add_model_options(parser)


def _predict(arguments: argparse.Namespace) -> int:
    sources = open_sources(arguments.sources, allow_urls=arguments.allow_urls)
    model = _existing(arguments.model) if arguments.model else demo.model_path()
    to_stdout = arguments.json == "-"
    with _open_detector(model, arguments) as detector, ExitStack() as stack:
        sinks = _open_sinks(arguments, sources, stack)
        shown = bool(sinks) and not to_stdout
        progress = stack.enter_context(Progress("frames", total_length(sources), shown=shown))
        tally = detect(
            sources,
            detector,
            sinks or [_print_frame],
            threshold=arguments.threshold,
            progress=progress,
        )
    if not to_stdout:
        print(report.tally_line(tally))
    return 1 if tally.failed else 0


def _open_sinks(
    arguments: argparse.Namespace, sources: Sequence[Source], stack: ExitStack
) -> list[Sink]:
    names = [source.name for source in sources]
    files = [Path(file).resolve() for file in (arguments.json, arguments.coco) if file]
    if len(set(files)) < len(files):
        raise InputError(f"--json and --coco both name {arguments.coco}; give each its own file")
    sinks: list[Sink] = []
    if arguments.json == "-":
        sinks.append(json_stream(sys.stdout))
    elif arguments.json is not None:
        sinks.append(stack.enter_context(json_lines(Path(arguments.json))))
    if arguments.coco:
        if not all(isinstance(source, ImageSource) for source in sources):
            raise InputError("--coco takes photos only: COCO has no frames of a video; use --json")
        sinks.append(stack.enter_context(coco_results(arguments.coco, coco_image_ids(names))))
    if arguments.save:
        sinks.append(stack.enter_context(annotated(arguments.save, names)))
    return sinks


def _print_frame(frame: Frame, detections: Detections) -> None:
    print(report.frame_table(frame, detections), flush=True)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="artifact")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="COCO annotation file"
    )
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of its images"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_model_options(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    from rfdetr_edge import evaluation  # needs the eval extra

    images = _existing(arguments.images)
    with _open_detector(_existing(arguments.model), arguments) as detector:
        document = read_annotations(arguments.annotations, detector.metadata.task)
        with Progress("images", len(document["images"])) as progress:
            found = evaluation.detect_annotated(detector, document, images, progress.advance)
    show = report.precision_json if arguments.json else report.precision_table
    print(show(evaluation.every_precision(document, found), best_threshold(document, found)))
    return 0


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="artifact")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _info(arguments: argparse.Namespace) -> int:
    description = report.describe_artifact(_existing(arguments.model))
    print(json.dumps(description) if arguments.json else report.artifact_text(description))
    return 0


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """For a command without arguments."""


def _doctor(arguments: argparse.Namespace) -> int:
    from rfdetr_edge.doctor import examine  # looks through every installed package

    findings = examine()
    print(report.findings_text(findings))
    return 1 if any(finding.level == "wrong" for finding in findings) else 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        choices=demo.EMBEDDED,
        help="one of the embedded models (default: all of them)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/demo"),
        metavar="DIR",
        help="where the annotated photos go (output/demo)",
    )


def _demo(arguments: argparse.Namespace) -> int:
    for task in [arguments.task] if arguments.task else demo.EMBEDDED:
        folder = arguments.output / task
        sources = [ImageSource(path) for path in demo.photo_paths(task)]
        with Detector(demo.model_path(task)) as detector, ExitStack() as stack:
            save = stack.enter_context(annotated(folder, [source.name for source in sources]))
            progress = stack.enter_context(Progress("photos", len(sources), shown=False))
            detect(sources, detector, [_print_frame, save], threshold=0.5, progress=progress)
    print(f"annotated photos: {arguments.output}")
    return 0


COMMANDS = (
    Command("predict", "detect objects on photos, videos or a camera", _add_predict, _predict),
    Command("evaluate", "average precision on a COCO data set", _add_evaluate, _evaluate),
    Command("info", "what an artifact says about itself", _add_info, _info),
    Command("doctor", "what is wrong with this installation", _add_nothing, _doctor),
    Command("demo", "the embedded models on the embedded photos", _add_demo, _demo),
)
