"""A contender that does nothing: what a turn of it costs is the benchmark's own."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.protocol import Mark

STAGES = ("decode", "preprocess", "infer", "postprocess")


class _Nothing:
    def turn(self, path: str, mark: Mark) -> int:
        for stage in STAGES:
            mark(stage)
        return 0

    def about(self) -> dict[str, Any]:
        return {}

    def scenarios(self) -> Mapping[str, Callable[..., Any]]:
        return {}


def load(options: Mapping[str, Any]) -> _Nothing:
    """See benchmarks/child.py."""
    return _Nothing()
