"""How far a build is, as the house's progress line; and Ctrl-C, which a build would not notice."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rfdetr_edge.progress import Progress

_STEPS = 1000  # of the line


@dataclass(slots=True)
class _Phase:
    """A part of the build: its parent's name, how many steps it has, and how many are done."""

    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Nested phases as one share of the whole.

    A phase is worth one step of its parent, the step that is under way while the phase lasts.
    TensorRT reports from several threads.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._shown = 0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def advance(self, name: str, step: int) -> None:
        """A step, counted from 0, is done."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            share = round(_STEPS * self._share(name))
            while self._shown < share:  # back it does not go
                self._shown += 1
                self._progress.advance()

    def finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            self._phases.pop(name, None)

    def _share(self, name: str) -> float:
        """How much of the whole is done, as seen from a phase."""
        part = 0.0
        phase = self._phases.get(name)
        while phase is not None:
            part = min((phase.done + part) / phase.steps, 1.0)
            phase = self._phases.get(phase.parent) if phase.parent else None
        return part


@contextmanager
def watched(module: Any, config: Any, label: str) -> Iterator[None]:
    """Shows how far the build of a configuration is while the block lasts.

    Raises KeyboardInterrupt after a Ctrl-C: TensorRT swallows one that reaches its callbacks, and
    otherwise it would wait until the build ends.
    """
    cancelled = threading.Event()

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.advance(phase_name, step)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    with Progress(label, _STEPS) as progress, _interrupt_sets(cancelled):
        phases = Phases(progress)
        monitor = Monitor()
        config.progress_monitor = monitor
        yield
    if cancelled.is_set():
        raise KeyboardInterrupt


@contextmanager
def _interrupt_sets(event: threading.Event) -> Iterator[None]:
    """Ctrl-C sets the event while the block lasts; only the main thread hears it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
