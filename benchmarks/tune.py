"""Which settings of ONNX Runtime run an artifact fastest on this machine's CPU.

One setting after the other. A candidate differs from the best so far in one thing, and both take
turns: a round opens one session, runs it a few times and closes it, then does the same with the
other, in an order that changes from round to round. So there is never more than one session:
none shares threads or memory with the one that is measured. A slow moment of the machine hits both.

I/O binding is no candidate: ONNX Runtime hands its outputs over without a copy as it is (1.31), and
binding them to arrays of our own took 0.98 to 1.02 of the time, with masks and without.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.statistics import ratio_interval
from exporters.verify import gate_images
from rfdetr_edge.backends import BACKENDS, Session, open_session
from rfdetr_edge.backends.onnxrt import save_optimized
from rfdetr_edge.binding import Binding, bind
from rfdetr_edge.errors import BackendError, InputError
from rfdetr_edge.images import read_image
from rfdetr_edge.machine import this_machine
from rfdetr_edge.postprocess import RawOutputs, best_pairs
from rfdetr_edge.preprocess import preprocess_batch
from rfdetr_edge.progress import Progress
from rfdetr_edge.saved_copy import mark_of
from rfdetr_edge.tuning import (
    Stamp,
    Tuned,
    Tuning,
    optimized_path,
    write_tuned,
)

_OF_OTHERS = {row.suffix for row in BACKENDS.values()} - {".onnx"}
WARM_UP = 3  # runs of a session that has just been opened
BLOCK = 5  # measured runs until it is closed
LEAST_RUNS = 30  # 6 rounds; of fewer an interval says nothing
TOLERANCE = 1e-4  # of an output's spread; rewriting a graph moves it by about 1e-6
_MOST_IMAGES = 16
_OTHER_TRIALS = 6  # than of threads: spinning, arena, two levels, the saved model, all of it

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Times:
    """Medians of two settings over all rounds, their ratio and its 95 % interval."""

    candidate_ms: float
    best_ms: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate against the best before it.

    difference: how its outputs differ from those of ONNX Runtime's defaults; None where they do
        not, and else nothing was measured. kept: whether it became the best.
    """

    candidate: str
    difference: str | None
    run: Times | None
    opening: Times | None
    kept: bool

    def __str__(self) -> str:
        if self.difference is not None:
            return f"{self.candidate:<22} refused: {self.difference}"
        kept = ", kept" if self.kept else ""
        return f"{self.candidate:<22} run {self.run}, opening {self.opening}{kept}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `tune` found and wrote. last: the tuning against the defaults; None if it is them."""

    tuned: Tuned
    trials: tuple[Trial, ...]
    last: Trial | None

    def __str__(self) -> str:
        lines = ["times of the best so far, with 95 % intervals:", *map(str, self.trials)]
        if self.last is None:
            return "\n".join([*lines, "nothing helps: ONNX Runtime's defaults are kept"])
        if self.last.kept:
            lines.append(f"{self.tuned.tuning}, against ONNX Runtime's defaults:")
        else:
            lines.append("together slower than ONNX Runtime's defaults, which are kept:")
        return "\n".join([*lines, str(self.last)])


def tune(artifact: Path, images: Path | None, runs: int, most_threads: int | None) -> Outcome:
    """Measures, and writes `<artifact>.tuned.json` and, where it helps, `<stem>.tuned.onnx`.

    images: a folder, whose first 16 images are used; None for the embedded photos.
    runs: measured runs of each of the two settings in a comparison.
    most_threads: as many threads at most; None for one a core.

    Raises InputError when something else than ONNX Runtime runs it, there are too few runs,
    nothing can be written beside the artifact, or a file that is not ours is in the way; and what
    the runtime raises for artifacts and images.
    """
    if artifact.suffix.lower() in _OF_OTHERS:
        raise InputError(f"tune finds settings of ONNX Runtime, which runs .onnx, not {artifact}")
    if runs < LEAST_RUNS:
        raise InputError(f"an interval needs at least {LEAST_RUNS} runs, not {runs}")
    saved = optimized_path(artifact)
    if saved.exists() and mark_of(saved) is None:
        raise InputError(f"{saved} is no copy that `tune` made, and in its way; rename it")
    rounds = -(-runs // BLOCK)
    defaults = Tuning(threads=most_threads)
    threads = range(1, most_threads or this_machine().cores + 1)
    reference = _reference(artifact, defaults, images)
    stamp = Stamp.of(artifact)
    with (
        Progress("tune", rounds * (len(threads) + _OTHER_TRIALS)) as progress,
        _folder_beside(artifact) as folder,
    ):
        search = _Search(artifact, reference, rounds, progress.advance)
        best = search.best(defaults, threads, folder)
        last = None
        if best != defaults:
            last = search.measured("all of it", best, defaults, _is_not_slower)
            best = best if last.kept else defaults
        if best.optimized is not None:
            (artifact.parent / best.optimized).replace(saved)
            best = replace(best, optimized=saved.name)
    tuned = Tuned(
        tuning=best,
        machine=this_machine(),
        onnxruntime=onnxruntime.__version__,
        artifact=stamp,
        optimized=None if best.optimized is None else Stamp.of(saved),
        figures={
            "images": len(reference.feeds),
            "rounds": rounds,
            "warm_up": WARM_UP,
            "runs": rounds * BLOCK,
            "defaults": asdict(defaults),
            "trials": [asdict(trial) for trial in search.trials],
            "last": None if last is None else asdict(last),
        },
    )
    write_tuned(artifact, tuned)
    if best.optimized is None:
        saved.unlink(missing_ok=True)  # of an earlier tuning
    return Outcome(tuned, tuple(search.trials), last)


@dataclass(frozen=True, slots=True)
class Reference:
    """What an artifact gives by ONNX Runtime's defaults on some images."""

    binding: Binding
    feeds: list[Arrays]
    outputs: list[Arrays]

    def difference(self, outputs: Sequence[Arrays]) -> str | None:
        """How the outputs of another session differ from these beyond rounding."""
        for wanted, found in zip(self.outputs, outputs, strict=True):
            for name, array in wanted.items():
                if np.array_equal(array, found[name], equal_nan=True):
                    continue
                apart, spread = np.abs(found[name] - array).max(), np.ptp(array)
                if not apart <= TOLERANCE * spread:  # nor where one is NaN
                    return f"{name} differs by {apart:.1e}, where its values spread by {spread:.1e}"
            if self._selected(wanted) != self._selected(found):
                return "other pairs of query and class are selected"
        return None

    def _selected(self, outputs: Arrays) -> list[set[int]]:
        """The pairs of query and class, of each image of a batch."""
        raw: RawOutputs = self.binding.raw_outputs(outputs)
        count = self.binding.metadata.num_select
        return [set(best_pairs(labels.ravel(), count).tolist()) for labels in raw.labels]


def _runs_faster(run: Times, _: Times) -> bool:
    return run.high < 1


def _opens_faster(run: Times, opening: Times) -> bool:
    """A graph that need not be rewritten at the start saves nothing later."""
    return opening.high < 1 and run.low <= 1


def _is_not_slower(run: Times, _: Times) -> bool:
    """What is faster by itself need not be together, or was so by chance."""
    return run.low <= 1


@dataclass(slots=True)
class _Search:
    """Candidates against the best so far. advance: called after each round."""

    artifact: Path
    reference: Reference
    rounds: int
    advance: Callable[[], None]
    trials: list[Trial] = field(default_factory=list)

    def best(self, defaults: Tuning, threads: Sequence[int], folder: Path) -> Tuning:
        """The fastest settings found. folder: in that of the artifact, for a saved model."""
        best = defaults
        for count in threads:
            best = self._try(f"threads {count}", replace(best, threads=count), best)
        if best.threads != 1:  # one thread waits for nobody
            best = self._try("no spinning", replace(best, spinning=False), best)
        best = self._try("no arena", replace(best, arena=False), best)
        best = self._try("optimization extended", replace(best, optimization="extended"), best)
        best = self._try("optimization basic", replace(best, optimization="basic"), best)
        save_optimized(self.artifact, best.optimization, folder / "saved.onnx")
        candidate = replace(best, optimized=f"{folder.name}/saved.onnx")
        return self._try("saved model", candidate, best, _opens_faster)

    def _try(
        self,
        name: str,
        candidate: Tuning,
        best: Tuning,
        better: Callable[[Times, Times], bool] = _runs_faster,
    ) -> Tuning:
        trial = self.measured(name, candidate, best, better)
        self.trials.append(trial)
        return candidate if trial.kept else best

    def measured(
        self,
        name: str,
        candidate: Tuning,
        best: Tuning,
        better: Callable[[Times, Times], bool],
    ) -> Trial:
        """better: decides by the times of running and of opening."""
        outputs = _outputs(self.artifact, candidate, self.reference.feeds)
        difference = self.reference.difference(outputs)
        if difference is not None:
            return Trial(name, difference, None, None, kept=False)
        seconds = np.empty((self.rounds, 2, 2))  # (round, candidate or best, run or opening)
        for index in range(self.rounds):
            turns = [(0, candidate), (1, best)]
            for column, tuning in turns if index % 2 == 0 else turns[::-1]:
                seconds[index, column] = _timed(self.artifact, tuning, self.reference.feeds)
            self.advance()
        run, opening = _times(seconds[:, :, 0]), _times(seconds[:, :, 1])
        return Trial(name, None, run, opening, kept=better(run, opening))


def _times(seconds: NDArray[np.float64]) -> Times:
    """seconds: (rounds, candidate and best)."""
    candidate, best = np.median(seconds, axis=0).tolist()
    low, high = ratio_interval(seconds)
    return Times(1000 * candidate, 1000 * best, candidate / best, low, high)


def _timed(artifact: Path, tuning: Tuning, feeds: Sequence[Arrays]) -> tuple[float, float]:
    """Seconds of a run (the median of a block) and of opening the session."""
    start = perf_counter()
    session = open_session(artifact, provider="cpu", tuning=tuning)
    opening = perf_counter() - start
    try:
        seconds = []
        for index in range(WARM_UP + BLOCK):
            start = perf_counter()
            session.run(feeds[index % len(feeds)])
            seconds.append(perf_counter() - start)
    finally:
        session.close()  # before the next one opens; see above
    return float(np.median(seconds[WARM_UP:])), opening


def _outputs(artifact: Path, tuning: Tuning, feeds: Sequence[Arrays]) -> list[Arrays]:
    session = open_session(artifact, provider="cpu", tuning=tuning)
    try:
        return [session.run(feed) for feed in feeds]
    finally:
        session.close()


def _reference(artifact: Path, defaults: Tuning, images: Path | None) -> Reference:
    session = open_session(artifact, provider="cpu", tuning=defaults)
    try:
        # what the slots mean changes no time, so that files of other exporters can be tuned too
        binding = bind(session, "contiguous" if session.metadata_json is None else None, None)
        paths = gate_images(images, binding.metadata.task)[:_MOST_IMAGES]
        feeds = [_feed(binding, path) for path in paths]
        outputs = [_checked(binding, session, feed) for feed in feeds]
    finally:
        session.close()
    return Reference(binding, feeds, outputs)


def _feed(binding: Binding, path: Path) -> Arrays:
    """A batch of one image, or of as many as the artifact wants, all the same."""
    image = read_image(path, upright=True)
    batch = [image] * (binding.batch or 1)
    return {binding.input_name: preprocess_batch(batch, binding.metadata.input)}


def _checked(binding: Binding, session: Session, feed: Arrays) -> Arrays:
    outputs = session.run(feed)
    if not binding.raw_outputs(outputs).are_numbers():
        raise BackendError("the artifact gives NaN or infinity; export it again and verify it")
    return outputs


@contextmanager
def _folder_beside(artifact: Path) -> Iterator[Path]:
    """A folder within the artifact's, so that what is saved there can be renamed into place."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{artifact.stem}.", dir=artifact.parent)
    except OSError as error:
        raise InputError(
            f"cannot write beside {artifact}: {error.strerror}; copy it to a folder of your own"
        ) from None
    with temporary as folder:
        yield Path(folder)
