"""The gate of artifacts of lower precision: still what the reference finds, within what is allowed?

An FP32 export must equal its reference (exporters.verify). FP16 and INT8 cannot; of them it is
asked that they say the same of themselves, hold the precision they state, give numbers, and lose no
more AP, or detections, than the user allows. Knows nothing of torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import onnx

from exporters.diagnosis import diagnosis
from exporters.inspection import inspected
from exporters.overflow import overflows
from exporters.scales import misfit
from exporters.trials import Outcome, Trial
from exporters.verify import contradictions
from rfdetr_edge.backends import open_session
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import BackendError
from rfdetr_edge.metadata import ModelMetadata, Precision

MAX_DROP: Mapping[Precision, float] = {
    "fp16": 0.1,
    "int8": 0.5,
    "int8-dynamic": 0.5,
    "int8-weight-only": 0.5,
}
"""Points of AP that an artifact may lose where the user does not say."""
# What tells weights of 8 bits apart; where activations stay float, so does the arithmetic.
_MEETING: Mapping[Precision, str] = {
    "int8": ": stored in 8 bits, their activations rounded by stored scales",
    "int8-dynamic": ": stored in 8 bits, their activations rounded by scales that each run finds",
    "int8-weight-only": ": stored in 8 bits, their activations in float",
}
# Images on which inner values are looked at: scales either fit or they do not.
_HIDDEN_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate saw. outcome: None where nothing was run. failures: one line each."""

    outcome: Outcome | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.failures

    def __str__(self) -> str:
        if self.outcome is None:
            return "; ".join(self.failures)
        return "\n  ".join([str(self.outcome), *self.failures])


def judge(
    wanted: ModelMetadata,
    candidate: Path,
    trial: Trial,
    max_drop: float | None = None,
    *,
    resamples: int = 1000,
) -> Judgement:
    """Compares an artifact with what its reference found.

    wanted: what the reference says of itself. max_drop: points of AP that may be lost where the
    trial's images are annotated; None is that of MAX_DROP. Where they are not, at most 2 % of the
    confident detections may be lost or invented. resamples: of the interval of the drop.
    Raises ArtifactError for a file that cannot be run at all.
    """
    session = open_session(candidate, provider="cpu")
    try:
        found = Detector.from_session(session).metadata
        failures = contradictions(wanted, found)
        allowed = MAX_DROP.get(found.precision, 0.0) if max_drop is None else max_drop
        graph = onnx.load(candidate) if candidate.suffix.lower() == ".onnx" else None
        if graph is not None:
            failures += _graph_faults(graph, found)
        if failures:
            return Judgement(None, tuple(failures))
        try:
            outcome = trial.run(session, resamples=resamples)
        except BackendError as error:  # NaN and infinity
            hidden = [] if graph is None else _hidden_faults(graph, found, trial)
            return Judgement(None, (str(error), *hidden))
        causes = []
        if not outcome.within(allowed):
            causes = diagnosis(trial, session, outcome.agreement.disagreement)
            failures = [_verdict(outcome, allowed), *causes]
        if graph is not None and not causes:
            failures += _hidden_faults(graph, found, trial)
        return Judgement(outcome, tuple(failures))
    finally:
        session.close()


def _graph_faults(model: onnx.ModelProto, metadata: ModelMetadata) -> list[str]:
    seen = inspected(model)
    faults = list(seen.faults)
    if seen.precision != metadata.precision:
        faults.append(
            f"it says {metadata.precision}, but most of its weights are {seen.precision}"
            + _MEETING.get(seen.precision, "")
        )
    return faults


def _hidden_faults(model: onnx.ModelProto, metadata: ModelMetadata, trial: Trial) -> list[str]:
    """What need not show in the detections of these images, on this machine."""
    tensors = islice(trial.images.tensors(metadata.input), _HIDDEN_IMAGES)
    if metadata.precision == "int8" and (fault := misfit(model, tensors)):
        return [fault]
    if metadata.precision == "fp16" and (nodes := overflows(model, tensors)):
        return [
            f"half precision overflows in {len(nodes)} nodes, first in {nodes[0]}: a GPU would "
            "give NaN; leave them in float32"
        ]
    return []


def _verdict(outcome: Outcome, max_drop: float) -> str:
    agreed = outcome.agreement
    if outcome.drop is not None:
        return f"it loses {outcome.drop:.2f} points of AP, and {max_drop:g} are allowed"
    return (
        f"it loses {agreed.lost} of {agreed.wanted} confident detections and invents "
        f"{agreed.invented} of {agreed.found}, on {agreed.images} images; 2 % are allowed"
    )
