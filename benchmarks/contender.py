"""A contender of a benchmark as the parent sees it: how it is started, and how it is asked."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from benchmarks.exchange import Exchange
from rfdetr_edge.errors import BackendError, InputError

_NS = 1e6  # in a millisecond


@dataclass(frozen=True, slots=True)
class Contender:
    """One contender.

    name: in reports, its own among all. module, options: see benchmarks/child.py.
    file: its model, where that is one file. python: the interpreter of its environment.
    environment: variables set beside our own.
    """

    name: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    python: Path = Path(sys.executable)
    environment: Mapping[str, str] = field(default_factory=dict)


def artifact_contenders(paths: Sequence[Path], threads: int | None) -> list[Contender]:
    """Artifacts of ours, each as `Detector` runs it, called by as much of its path as needed.

    Raises InputError for a file that is not there.
    """
    short = [path.name for path in paths]
    names = [path.name if short.count(path.name) == 1 else str(path) for path in paths]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    return [
        Contender(
            name if names[:number].count(name) == 0 else f"{name} ({number + 1})",
            "benchmarks.artifact",
            {"path": str(path.resolve()), "threads": threads},
            path,
        )
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class Turn:
    """One image through a contender, in milliseconds.

    stages: by name, in order; together the total. detections: how many it found.
    idle_cpu_ms: CPU time that its threads took since its last turn, while others had theirs.
    """

    total_ms: float
    stages: Mapping[str, float]
    detections: int
    idle_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Start:
    """How a contender came up, in milliseconds.

    import_ms: of its libraries; load_ms: of the model; first_ms: of the first image;
    cold_ms: from the start of the process to the first image's detections, as the parent sees it.
    """

    import_ms: float
    load_ms: float
    first_ms: float
    cold_ms: float


class Running:
    """A contender's process. Use it in a `with` block.

    Raises InputError when it refuses what it was given, BackendError when it fails or ends, and
    ModuleNotFoundError for a library that its environment lacks.
    """

    def __init__(self, contender: Contender, first: Path) -> None:
        self.contender = contender
        options = {**contender.options, "first": str(first)}
        begin = perf_counter_ns()
        self._exchange = Exchange(
            contender.name,
            contender.python,
            ["benchmarks.child", contender.module, json.dumps(options)],
            contender.environment,
        )
        try:
            ready = self._checked(self._exchange.answer())
        except BaseException:
            self._exchange.end(at_once=True)
            raise
        self.start = Start(
            ready["import"] / _NS,
            ready["load"] / _NS,
            ready["first"]["total"] / _NS,
            (perf_counter_ns() - begin) / _NS,
        )

    def __enter__(self) -> "Running":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exchange.end(at_once=kind is not None)

    def turn(self, path: Path) -> Turn:
        """One image."""
        answer = self.ask("turn", path=str(path))
        return Turn(
            answer["total"] / _NS,
            {stage: ns / _NS for stage, ns in answer["stages"].items()},
            answer["detections"],
            answer["idle_cpu"] / _NS,
        )

    def ask(self, do: str, **options: Any) -> Any:
        """The answer to any request of benchmarks/child.py, and any scenario of the runner's."""
        return self._checked(self._exchange.ask({"do": do, **options}))

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "refused" in answer:
            kind = InputError if answer["by_input"] else BackendError
            raise kind(f"{self.contender.name}: {answer['refused']}")
        if "missing" in answer:
            raise ModuleNotFoundError(
                f"{self.contender.name} needs {answer['missing']}", name=answer["missing"]
            )
        return answer
