"""A process that answers each line of JSON with another. It knows nothing of what is asked."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfdetr_edge.errors import BackendError

_PATIENCE = 10.0  # seconds that a process has to end once nobody asks any more


class Exchange:
    """`python -m` with `arguments`, started at once; the first answer needs no request.

    name: in errors. environment: variables set beside our own.
    """

    def __init__(
        self, name: str, python: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self._name = name
        self._process = subprocess.Popen(
            [python, "-m", *arguments],
            cwd=Path(__file__).parent.parent,  # the folder of this package, wherever the user is
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises BackendError when the process ended instead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises BackendError when the process ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self, *, at_once: bool) -> None:
        """Ends the process: after its last answer, or at once."""
        if at_once:
            self._process.kill()
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _ended(self) -> BackendError:
        code = self._process.wait()
        return BackendError(
            f"the process of {self._name} ended with {code}; its messages are above"
        )
