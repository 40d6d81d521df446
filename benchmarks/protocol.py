"""What a contender of a benchmark is to the process that runs it (benchmarks/child.py).

Standard library alone, since contenders also live in the environments of peers.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

Mark = Callable[[str], None]
"""Called with the name of a stage when it ends; the next stage begins there."""


class Runner(Protocol):
    """Something that finds objects on images."""

    def turn(self, path: str, mark: Mark) -> int:
        """One image, from its file to detections above 0.5; returns how many they are."""

    def about(self) -> dict[str, Any]:
        """What is known about it, as JSON."""

    def scenarios(self) -> Mapping[str, Callable[..., Any]]:
        """What else it can be asked, by name: keyword arguments in, a JSON object out."""


class Refused(Exception):
    """Raised by a runner that cannot do what it is asked; its text is for the user.

    by_input: what it was given is at fault, not the machine or a library.
    """

    def __init__(self, message: str, *, by_input: bool) -> None:
        super().__init__(message)
        self.by_input = by_input
