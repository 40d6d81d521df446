"""The last lines that TensorRT wrote, for the errors of calls that only answer None or False."""

from typing import Any, TypeVar

from rfdetr_edge.backends.tensorrt_log import listener
from rfdetr_edge.errors import BackendError

_Made = TypeVar("_Made")


def last_lines(module: Any) -> str:
    """What TensorRT wrote last, to end a message with; nothing where it wrote nothing."""
    return "".join(f"\n  {line}" for text in listener(module).heard for line in text.splitlines())


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
