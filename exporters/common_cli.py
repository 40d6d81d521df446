"""What the commands that make and judge artifacts share."""

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.variants import Task

if TYPE_CHECKING:
    from exporters.calibration import CalibrationSet

MAX_IMAGES = 100
"""Images of a calibration, where the user does not say."""
ALL = 1_000_000
"""Images of a gate: more than a folder holds."""
MAX_DROP = (
    "AP that may be lost, in points of 100 (default: 0.1 for fp16, 0.5 for all of int8; of a "
    ".tflite 1 for int8, 0.3 for int8-weight-only)"
)
"""Help of --max-drop."""


def calibration_images(arguments: argparse.Namespace) -> "CalibrationSet":
    """Those of --calibration and --max-images."""
    from exporters.calibration import calibration_set

    limit = MAX_IMAGES if arguments.max_images is None else arguments.max_images
    return calibration_set(arguments.calibration, limit=limit)


def refuse(arguments: argparse.Namespace, *names: str, why: str) -> None:
    """Options that are for something else."""
    for name in names:
        if vars(arguments)[name] is not None:
            raise InputError(f"--{name.replace('_', '-')} is for {why}")


def task_of(artifact: Path) -> Task:
    """What an artifact finds, as it says itself."""
    from rfdetr_edge.backends import open_session, proving_providers
    from rfdetr_edge.detector import Detector

    session = open_session(artifact, provider=proving_providers(artifact)[0])
    try:
        return Detector.from_session(session).metadata.task
    finally:
        session.close()


@contextmanager
def naming_lack_of_memory() -> Iterator[None]:
    """torch turns it into a RuntimeError of several lines, which litert-torch may have met."""
    try:
        yield
    except (MemoryError, RuntimeError, ArtifactError) as error:
        said = f"{error} {error.__cause__}"
        if not isinstance(error, MemoryError) and "can't allocate memory" not in said:
            raise
        raise InputError(
            "there is not enough memory for this shape and batch; choose a smaller --shape or "
            "--batch, or --batch dynamic"
        ) from None


@contextmanager
def tidy_when_terminated() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that nothing half-written stays; exit code 143.

    Only the main thread hears it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
