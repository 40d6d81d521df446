"""One contender of a benchmark in a process of its own.

    python -m benchmarks.child MODULE OPTIONS

MODULE has `load(options) -> protocol.Runner`. OPTIONS is a JSON object; its "first" is the path of
an image that is run at once, so that the parent can tell how long a first detection takes.

A request is a line of JSON on stdin, `{"do": "turn", "path": "..."}`, and every answer a line on
stdout; the first answer needs no request. Standard library alone, as in protocol.py. An end of
stdin is the end.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any

from benchmarks.protocol import Refused, Runner

# importable name -> the distributions that may have brought it
_DISTRIBUTIONS = {
    "rfdetr_edge": ("rfdetr-edge",),
    "numpy": ("numpy",),
    "ai_edge_litert": ("ai-edge-litert",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "cv2": ("opencv-python-headless", "opencv-python"),
    "PIL": ("pillow",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "rfdetr": ("rfdetr",),
}


class _Turns:
    """Turns of a runner, and the CPU time that its threads take between them."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._cpu = process_time_ns()

    def __call__(self, path: str) -> dict[str, Any]:
        """The answer to "turn": all times in ns, those of stages in their order."""
        marks: list[tuple[str, int]] = []

        def mark(stage: str) -> None:
            marks.append((stage, perf_counter_ns()))

        idle_cpu = process_time_ns() - self._cpu
        start = perf_counter_ns()
        found = self._runner.turn(path, mark)
        total = perf_counter_ns() - start
        self._cpu = process_time_ns()
        begins = [start, *(end for _, end in marks)]
        stages = {
            stage: end - begin for (stage, end), begin in zip(marks, begins[:-1], strict=True)
        }
        return {"total": total, "stages": stages, "detections": found, "idle_cpu": idle_cpu}


def usage() -> dict[str, float]:
    """CPU seconds that this process took; where Linux says it, MB that it holds, and held at most.

    The peak is not getrusage's, which starts at that of the process that started this one.
    """
    found = {"cpu": process_time_ns() / 1e9}
    status = Path("/proc/self/status")
    if status.exists():
        text = status.read_text()
        for name, field in (("peak_mb", "VmHWM"), ("steady_mb", "VmRSS")):
            found[name] = int(text.partition(f"{field}:")[2].split()[0]) / 1024
    return found


def versions() -> dict[str, str]:
    """Of Python and of the known libraries that this process has loaded."""
    found = {"python": platform.python_version()}
    for module, distributions in _DISTRIBUTIONS.items():
        if module in sys.modules:
            for name in distributions:
                with suppress(importlib.metadata.PackageNotFoundError):
                    found[name] = importlib.metadata.version(name)
    return found


def _serve(module: str, options: dict[str, Any], answer: Callable[[Any], None]) -> None:
    first = options.pop("first")
    start = perf_counter_ns()
    load: Callable[[Mapping[str, Any]], Runner] = importlib.import_module(module).load
    imported = perf_counter_ns()
    runner = load(options)
    loaded = perf_counter_ns()
    turn = _Turns(runner)
    answer({"import": imported - start, "load": loaded - imported, "first": turn(first)})
    scenarios = runner.scenarios()

    def about() -> dict[str, Any]:
        return {**runner.about(), "versions": versions(), "scenarios": sorted(scenarios)}

    requests: dict[str, Callable[..., Any]] = {"turn": turn, "usage": usage, "about": about}
    requests |= scenarios
    for line in sys.stdin:
        request = json.loads(line)
        answer(requests[request.pop("do")](**request))


def main() -> None:
    """Serves; what the contender refuses, and a library it lacks, are answers too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it as well, and ends this one
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value: Any) -> None:
        print(json.dumps(value), file=output, flush=True)

    try:
        _serve(sys.argv[1], json.loads(sys.argv[2]), answer)
    except Refused as error:
        answer({"refused": str(error), "by_input": error.by_input})
    except ModuleNotFoundError as error:
        answer({"missing": error.name})


if __name__ == "__main__":
    main()
