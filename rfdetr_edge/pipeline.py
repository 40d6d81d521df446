"""The loop from sources through the detector to the sinks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import InputError
from rfdetr_edge.progress import Progress
from rfdetr_edge.sinks import Sink
from rfdetr_edge.sources import CameraSource, Frame, Source


@dataclass(slots=True)
class Tally:
    """frames: seen by the detector. detections: found on them. failed: sources not read in full."""

    frames: int = 0
    detections: int = 0
    failed: int = 0


def detect(
    sources: Sequence[Source],
    detector: Detector,
    sinks: Sequence[Sink],
    *,
    threshold: float,
    progress: Progress,
) -> Tally:
    """Detects on every frame and hands it to every sink, in order.

    Frames are gathered to the batch that the artifact fixes; those of a camera never wait.
    A source that cannot be read is said on `progress` and left, so that one broken file costs
    nothing but itself. An interrupt ends a camera and is raised otherwise. Raises InputError when
    nothing at all could be read, and whatever the detector or a sink raises.
    """
    tally = Tally()
    waiting: list[Frame] = []

    def flush() -> None:
        frames = waiting.copy()
        waiting.clear()  # first, so that no frame is handed on twice after an interrupt
        found = detector.predict([frame.image for frame in frames], threshold=threshold)
        for frame, detections in zip(frames, found, strict=True):
            for sink in sinks:
                sink(frame, detections)
            tally.frames += 1
            tally.detections += len(detections)
            progress.advance()

    for source in sources:
        live = isinstance(source, CameraSource)
        try:
            for frame in _readable(source, tally, progress, alone=len(sources) == 1):
                waiting.append(frame)
                if live or len(waiting) == (detector.batch_size or 1):
                    flush()
        except KeyboardInterrupt:
            if not live:
                raise
    if waiting:
        flush()
    if tally.failed and not tally.frames:
        raise InputError(f"nothing to do: none of the {len(sources)} inputs can be read")
    return tally


def _readable(source: Source, tally: Tally, progress: Progress, *, alone: bool) -> Iterator[Frame]:
    try:
        yield from source.frames()
    except InputError as error:
        if alone and not tally.frames:
            raise  # the one error says it all
        tally.failed += 1
        progress.say(f"rfdetr-edge: error: {error}")
