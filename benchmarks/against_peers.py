"""Artifacts of ours beside what else runs a checkpoint: `python -m benchmarks.against_peers`.

Upstream's `predict` on torch, upstream's helper for its ONNX file, and that file by hand with
onnxruntime and Pillow, each from the environment that benchmarks/baselines/peer_env.sh makes. All
take turns on the same photos, with as many threads, and none keeps spinning after its turn.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.cli import photos, positive
from benchmarks.contender import Contender, artifact_contenders
from benchmarks.measure import Plan, measure
from benchmarks.outputs import writable
from benchmarks.page import page
from benchmarks.table import text
from rfdetr_edge.errors import BackendError, InputError, RFDETREdgeError
from rfdetr_edge.progress import Progress

# what upstream builds its network from needs no network; OpenMP's threads must not spin either
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def peers(venv: Path, checkpoint: Path, artifact: Path, threads: int | None) -> list[Contender]:
    """The three contenders. artifact: upstream's ONNX file of the checkpoint."""
    environment = dict(_ENVIRONMENT)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    of_artifact = {"path": str(artifact.resolve()), "threads": threads}
    of_checkpoint = {"checkpoint": str(checkpoint.resolve()), "threads": threads}
    python = venv / "bin" / "python"
    return [
        Contender(name, f"benchmarks.baselines.{module}", options, file, python, environment)
        for name, module, options, file in (
            ("upstream predict", "predict", of_checkpoint, checkpoint),
            ("upstream ONNX helper", "onnx_helper", of_artifact, artifact),
            ("onnxruntime by hand", "plain", of_artifact, artifact),
        )
    ]


def upstream_artifact(venv: Path, checkpoint: Path, folder: Path) -> Path:
    """Upstream's ONNX file of a checkpoint, written into an empty folder.

    Raises InputError for what is not there, BackendError when the export fails.
    """
    python = venv / "bin" / "python"
    for path, remedy in (
        (python, "; make it with benchmarks/baselines/peer_env.sh"),
        (checkpoint, ""),
    ):
        if not path.is_file():
            raise InputError(f"{path}: no such file{remedy}")
    done = subprocess.run(
        [python, "-m", "benchmarks.baselines.export", checkpoint.resolve(), folder],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **_ENVIRONMENT},
        stdout=subprocess.DEVNULL,
    )
    found = sorted(folder.rglob("*.onnx"))
    if done.returncode or len(found) != 1:
        raise BackendError(f"upstream's export of {checkpoint} failed; its messages are above")
    return found[0]


def _run(arguments: argparse.Namespace) -> None:
    ours = artifact_contenders(arguments.models, arguments.threads)
    plan = Plan(photos(arguments.images), arguments.runs)
    outputs = [path for path in (arguments.json, arguments.html) if path is not None]
    with tempfile.TemporaryDirectory() as folder, writable(outputs, keep=[]) as files:
        artifact = upstream_artifact(arguments.peer, arguments.checkpoint, Path(folder))
        theirs = peers(arguments.peer, arguments.checkpoint, artifact, arguments.threads)
        # upstream first: the ratios are against it
        with Progress("rounds", plan.rounds) as progress:
            report = measure([*theirs, *ours], plan, advance=progress.advance)
        for path, file in zip(outputs, files, strict=True):
            document = report.to_json() if path == arguments.json else page(report)
            file.write_text(document, encoding="utf-8")
    print(text(report))


def main() -> None:
    """Measures, prints, and writes the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_peers")
    parser.add_argument("models", type=Path, nargs="+", help="our artifacts of the checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the same weights (.pth)")
    default = Path(tempfile.gettempdir()) / "rfdetr-peer"
    parser.add_argument("--peer", type=Path, default=default, help="folder made by peer_env.sh")
    parser.add_argument("--images", type=Path, help="folder of photos (default: the embedded ones)")
    parser.add_argument("--runs", type=positive, default=200, help="measured images of each (200)")
    parser.add_argument("--threads", type=positive, help="of one run, for all alike")
    parser.add_argument("--json", type=Path, help="everything, with every sample taken")
    parser.add_argument("--html", type=Path, help="a page that needs nothing else")
    try:
        _run(parser.parse_args())
    except InputError as error:
        parser.error(str(error))
    except RFDETREdgeError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
