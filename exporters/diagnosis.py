"""Why an artifact of lower precision finds other things than its reference: the usual mistakes.

Looked for only where the two disagree, and each is tried: undone, it must bring the detections
back, or it is not named.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from exporters.agreement import agreement, detections
from exporters.trials import Trial
from rfdetr_edge.backends import Session
from rfdetr_edge.backends.fake import FakeSession

# What undoing a mistake must leave of the disagreement.
_EXPLAINED = 0.5


def diagnosis(trial: Trial, candidate: Session, disagreement: float) -> list[str]:
    """What is wrong with a candidate that disagrees with the reference, one line each.

    disagreement: what its trial saw. Empty when nothing known fits.
    """
    tries = {
        "it takes its colours in the order BGR: swap the channels of its first layer, or export "
        "it again": detections(candidate, (image[..., ::-1] for image in trial.images.pixels())),
        "its outputs dets and labels have each other's name": detections(
            _swapped(candidate), trial.images.pixels()
        ),
    }
    return [
        text
        for text, undone in tries.items()
        if agreement(zip(trial.reference, undone, strict=True)).disagreement
        < disagreement * _EXPLAINED
    ]


def _swapped(session: Session) -> Session:
    """The same with its first two outputs exchanged where they have one shape."""

    def run(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = session.run(feeds)
        if found["dets"].shape != found["labels"].shape:
            return found
        return {**found, "dets": found["labels"], "labels": found["dets"]}

    return FakeSession(
        run, session.inputs, session.outputs, session.metadata_json, session.provider
    )
