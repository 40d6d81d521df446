"""A contender of a benchmark as the parent sees it: how it is started, and how it is asked."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from rfdetr_edge.errors import BackendError, InputError

_NS = 1e6  # in a millisecond
_PATIENCE = 10.0  # seconds that a process has to end after its last turn


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


def artifact_contenders(
    paths: Sequence[Path], threads: int | None, *, alone: bool
) -> list[Contender]:
    """Artifacts of ours, each as `Detector` runs it, called by as much of its path as needed.

    alone: nobody else takes turns with them. Raises InputError for a file that is not there.
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
            {"path": str(path.resolve()), "threads": threads, "alone": alone},
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
        self._process = subprocess.Popen(
            [contender.python, "-m", "benchmarks.child", contender.module, json.dumps(options)],
            # the folder of this package, wherever the user is
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **contender.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            ready = self._answer()
        except BaseException:
            self._end(at_once=True)
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
        self._end(at_once=kind is not None)

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
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "refused" in answer:
            kind = InputError if answer["by_input"] else BackendError
            raise kind(f"{self.contender.name}: {answer['refused']}")
        if "missing" in answer:
            raise ModuleNotFoundError(
                f"{self.contender.name} needs {answer['missing']}", name=answer["missing"]
            )
        return answer

    def _ended(self) -> BackendError:
        code = self._process.wait()
        return BackendError(
            f"the process of {self.contender.name} ended with {code}; its messages are above"
        )

    def _end(self, *, at_once: bool) -> None:
        if at_once:
            self._process.kill()
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
