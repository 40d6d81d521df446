"""The same build as a command line, for machines that have TensorRT but not its Python module.

The switches are those that NVIDIA documents; nothing here has run them.
"""

import shlex
from pathlib import Path

from exporters.trt.dialect import DIALECTS, Choice
from exporters.trt.options import Batch, EngineOptions


def commands(
    source: Path,
    output: Path,
    image: tuple[str, tuple[int, ...]],
    options: EngineOptions,
    choice: Choice = "auto",
) -> str:
    """One command for each dialect, since which TensorRT will run it is not known here.

    image: name and shape of the graph's input, -1 for an open batch.
    Raises InputError for a batch that the graph does not have.
    """
    name, shape = image
    batch = options.fitting_batch(shape[0])
    lines = []
    for row in DIALECTS:
        if choice not in ("auto", row.family):
            continue
        words = [row.program, f"--onnx={source}", f"--saveEngine={output}", *row.switches]
        words += ["--noTF32", "--profilingVerbosity=detailed"]
        if shape[0] < 0:
            words += _shapes(name, shape[1:], batch)
        if options.workspace is not None:
            words.append(f"--memPoolSize=workspace:{options.workspace}")
        if options.timing_cache is not None and row.keeps_timings:
            words.append(f"--timingCacheFile={options.timing_cache}")
        lines.append(f"# {row.names}\n{shlex.join(words)}")
    return "\n".join(lines)


def follow_up(source: Path, output: Path, options: EngineOptions, choice: Choice = "auto") -> str:
    """What makes the record of an engine that a command of `commands` built."""
    words = ["rfdetr-edge", "export", str(source), "-o", str(output), "--format", "engine"]
    if options.batch is not None:
        words += ["--batch", ",".join(map(str, options.batch))]
    if choice != "auto":
        words += ["--dialect", choice]
    return (
        "# then its record, without which rfdetr-edge does not run it; on the GPU that it was built"
        f" for,\n# with TensorRT's Python module\n{shlex.join([*words, '--adopt'])}"
    )


def _shapes(name: str, rest: tuple[int, ...], batch: Batch) -> list[str]:
    return [
        f"--{which}Shapes={name}:{'x'.join(map(str, (size, *rest)))}"
        for which, size in zip(("min", "opt", "max"), batch, strict=True)
    ]
