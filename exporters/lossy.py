"""The gate of artifacts of lower precision: still what the reference finds, within what is allowed?

An FP32 export must equal its reference (exporters.verify). FP16 and INT8 cannot; of them it is
asked that they say the same of themselves, hold the precision they state, give numbers, and lose no
more AP, or detections, than the user allows. Knows nothing of torch.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from exporters.agreement import NOTHING_FOUND
from exporters.diagnosis import diagnosis
from exporters.formats import Format, default_max_drop, format_of
from exporters.trials import Outcome, Trial
from exporters.verify import contradictions
from rfdetr_edge.backends import Session, open_session, proving_providers
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import BackendError
from rfdetr_edge.metadata import ModelMetadata, Precision

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
    """What the gate saw.

    outcome: None where nothing was run. failures: one line each. elsewhere: the outcome on every
    other provider that the artifact must please.
    """

    outcome: Outcome | None
    failures: tuple[str, ...]
    elsewhere: Mapping[str, Outcome] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.failures

    def __str__(self) -> str:
        if self.outcome is None:
            return "; ".join(self.failures)
        others = [f"{outcome} ({provider})" for provider, outcome in self.elsewhere.items()]
        return "\n  ".join([str(self.outcome), *others, *self.failures])


def judge(
    wanted: ModelMetadata,
    candidate: Path,
    trial: Trial,
    max_drop: float | None = None,
    *,
    resamples: int = 1000,
) -> Judgement:
    """Compares an artifact with what its reference found, on each provider that must run it.

    wanted: what the reference says of itself. max_drop: points of AP that may be lost where the
    trial's images are annotated; None is `default_max_drop`. Where they are not, at most 2 % of the
    confident detections may be lost or invented. resamples: of the interval of the drop.
    Raises ArtifactError for a file that cannot be run at all.
    """
    usual, *others = proving_providers(candidate)
    kind = format_of(candidate)
    with closing(open_session(candidate, provider=usual)) as session:
        found = Detector.from_session(session).metadata
        allowed = default_max_drop(candidate, found.precision) if max_drop is None else max_drop
        failures = contradictions(wanted, found)
        if kind is not None:
            failures += _faults(kind, candidate, found)
        if failures:
            return Judgement(None, tuple(failures))
        judged = _judged(session, trial, allowed, resamples)
        if kind is not None and len(judged.failures) < 2:  # else the cause is named
            tensors = islice(trial.images.tensors(found.input), _HIDDEN_IMAGES)
            hidden = kind.hidden_faults(candidate, found, tensors)
            judged = replace(judged, failures=(*judged.failures, *hidden))
    for provider in others:
        with closing(open_session(candidate, provider=provider)) as session:
            other = _judged(session, trial, allowed, resamples)
        failures = [f"on {session.provider}: {failure}" for failure in other.failures]
        judged = replace(judged, failures=(*judged.failures, *failures))
        if other.outcome is not None:
            elsewhere = {**judged.elsewhere, session.provider: other.outcome}
            judged = replace(judged, elsewhere=elsewhere)
    return judged


def _faults(kind: Format, candidate: Path, metadata: ModelMetadata) -> list[str]:
    """What is seen without a run."""
    seen = kind.inspected(candidate)
    faults = list(seen.faults)
    if seen.precision != metadata.precision:
        faults.append(
            f"it says {metadata.precision}, but most of its weights are {seen.precision}"
            + _MEETING.get(seen.precision, "")
        )
    return faults


def _judged(session: Session, trial: Trial, max_drop: float, resamples: int) -> Judgement:
    try:
        outcome = trial.run(session, resamples=resamples, progress=f"gate on {session.provider}")
    except BackendError as error:  # NaN and infinity
        return Judgement(None, (str(error),))
    if outcome.drop is None and not outcome.agreement.says_something:
        return Judgement(outcome, (NOTHING_FOUND,))
    if outcome.within(max_drop):
        return Judgement(outcome, ())
    causes = diagnosis(trial, session, outcome.agreement.disagreement)
    return Judgement(outcome, (_verdict(outcome, max_drop), *causes))


def _verdict(outcome: Outcome, max_drop: float) -> str:
    agreed = outcome.agreement
    if outcome.drop is not None:
        return f"it loses {outcome.drop:.2f} points of AP, and {max_drop:g} are allowed"
    return (
        f"it loses {agreed.lost} of {agreed.wanted} confident detections and invents "
        f"{agreed.invented} of {agreed.found}, on {agreed.images} images; 2 % are allowed"
    )
