"""An artifact of ours as a contender (benchmarks/child.py): `Detector` as users call it.

The stages are seen from outside, by a tap on the session: what `predict` does before the session
runs is preprocessing, what it does afterwards is postprocessing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

# used by rfdetr_edge; here, so that the time of importing holds every library that detecting needs
import cv2  # noqa: F401
import onnxruntime  # noqa: F401
from numpy.typing import NDArray

from benchmarks.camera import watch
from benchmarks.pipelined import pipelined
from benchmarks.protocol import Mark, Refused
from rfdetr_edge.backends import Session, fitting_tuning, open_session
from rfdetr_edge.classes import Layout
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import BackendError, RFDETREdgeError
from rfdetr_edge.images import load_image
from rfdetr_edge.tuning import Tuning

_HELD = 8  # decoded frames of the camera, 6 MB each in 1080p


class _Tap:
    """A session that marks where its run begins and ends, and lets one thread in at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = Lock()
        self.inputs, self.outputs = session.inputs, session.outputs
        self.metadata_json, self.provider = session.metadata_json, session.provider
        self.close = session.close
        self.mark: Mark = _unmarked

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `backends.Session.run`."""
        with self._lock:
            self.mark("preprocess")
            outputs = self._session.run(feeds)
            self.mark("infer")
        return outputs


class _Artifact:
    """See `protocol.Runner`."""

    def __init__(self, path: Path, tuning: Tuning) -> None:
        session = open_session(path, tuning=tuning)
        self._tap = _Tap(session)
        # LiteRT takes nothing else of it
        is_onnx = path.suffix.lower() == ".onnx"
        self._settings = str(tuning) if is_onnx else f"threads {tuning.threads}"
        # what the slots mean changes no time, so that files of other exporters run as well
        layout: Layout | None = "contiguous" if session.metadata_json is None else None
        self._detector = Detector.from_session(self._tap, class_layout=layout)

    def turn(self, path: str, mark: Mark) -> int:
        with _refusing():
            image = load_image(path, upright=True)
            mark("decode")
            self._tap.mark = mark
            found = len(self._detector.predict(image))
            mark("postprocess")
            self._tap.mark = _unmarked
        return found

    def about(self) -> dict[str, Any]:
        metadata = self._detector.metadata
        described = self._tap.metadata_json is not None
        return {
            "task": metadata.task,
            "variant": metadata.variant,
            "precision": metadata.precision if described else None,
            "resolution": list(metadata.input.resolution),
            "batch": self._detector.batch_size,
            "provider": self._detector.provider,
            "settings": self._settings,
        }

    def scenarios(self) -> Mapping[str, Callable[..., Any]]:
        return {"pipelined": self._pipelined, "camera": self._camera}

    def _pipelined(self, paths: Sequence[str]) -> dict[str, int]:
        with _refusing():
            return {"ns": pipelined(self._detector.predict, paths)}

    def _camera(self, paths: Sequence[str], fps: float, frames: int) -> dict[str, Any]:
        with _refusing():
            held = [load_image(path, upright=True) for path in paths[:_HELD]]

            def detect(number: int) -> None:
                self._detector.predict(held[number % len(held)])

            return asdict(watch(detect, fps=fps, frames=frames))


def load(options: Mapping[str, Any]) -> _Artifact:
    """options: path; threads, None for what `Detector` takes."""
    path, threads = Path(options["path"]), options["threads"]
    with _refusing():
        tuned = fitting_tuning(path) if threads is None else None
        return _Artifact(path, tuned or Tuning(threads=threads))


def _unmarked(stage: str) -> None:
    """For runs whose stages nobody asked for."""


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except RFDETREdgeError as error:
        by_input = not isinstance(error, BackendError)
        raise Refused(str(error), by_input=by_input) from error
