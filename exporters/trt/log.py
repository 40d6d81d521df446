"""The last lines that TensorRT wrote, for the errors of calls that only answer None or False."""

import logging
from collections import deque
from functools import cache
from typing import Any, TypeVar

from rfdetr_edge.errors import BackendError

_KEPT = 8
_Made = TypeVar("_Made")

logger = logging.getLogger(__name__)


@cache
def recorder(module: Any) -> Any:
    """TensorRT's logger, which keeps the last warnings and errors in `lines`.

    One for the process: as long as anything made with one logger lives, TensorRT ignores others.
    """
    levels = {
        module.ILogger.INTERNAL_ERROR: logging.ERROR,
        module.ILogger.ERROR: logging.ERROR,
        module.ILogger.WARNING: logging.WARNING,
        module.ILogger.INFO: logging.INFO,
    }

    class Recorder(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.NOTSET)
            if level >= logging.WARNING:
                self.lines.append(message)
            if level:  # of the thousands of things more that it says, none is for people
                logger.debug("%s", message)

    return Recorder()


def last_lines(module: Any) -> str:
    """What TensorRT wrote last, to end a message with; nothing where it wrote nothing."""
    return "".join(f"\n  {line}" for text in recorder(module).lines for line in text.splitlines())


def constructed(module: Any, kind: Any, *arguments: Any) -> Any:
    """An object of one of the module's classes. Raises BackendError where the library gives none.

    Its bindings make a TypeError of that.
    """
    try:
        return kind(*arguments)
    except TypeError as error:
        raise BackendError(f"TensorRT gives no {kind.__name__}{last_lines(module)}") from error


def checked(module: Any, answer: _Made | None, task: str) -> _Made:
    """The answer of a call. Raises BackendError for None and False, which say that it failed."""
    if answer is None or answer is False:
        raise BackendError(f"TensorRT could not {task}{last_lines(module)}")
    return answer
