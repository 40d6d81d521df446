"""A progress line on stderr, for work over a second, on a terminal only."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

_DELAY = 1.0  # seconds before the line first shows
_INTERVAL = 0.1  # seconds between two redraws
_TICK = 1.0  # seconds between two redraws of work without steps
_WIDTH = 30
_ERASE = "\r\x1b[K"


class Progress:
    """Counts steps; a context manager that leaves nothing behind on the screen.

    total: number of steps, None when it is not known, as for a camera.
    shown: False where other output already tells how far the work is.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        shown: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._label = label
        self._total = total
        self._stream = stream or sys.stderr
        self._terminal = shown and self._stream.isatty()
        self._done = 0
        self._start = time.monotonic()
        self._next = self._start + _DELAY

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._erase()

    def advance(self) -> None:
        """Counts one step."""
        self._done += 1
        now = time.monotonic()
        if self._terminal and now >= self._next:
            self._next = now + _INTERVAL
            self._stream.write(_ERASE + self._line(now - self._start))
            self._stream.flush()

    def say(self, message: str) -> None:
        """Writes a line of its own, on a terminal or not."""
        self._erase()
        self._stream.write(f"{message}\n")
        self._stream.flush()

    def _erase(self) -> None:
        if self._terminal:
            self._stream.write(_ERASE)
            self._stream.flush()

    def _line(self, seconds: float) -> str:
        rate = f"{self._done / seconds:.1f}/s"
        if not self._total:
            return f"{self._label} {self._done} {rate}"
        share = min(self._done / self._total, 1.0)
        bar = "#" * round(share * _WIDTH)
        left = seconds / share - seconds
        return (
            f"{self._label} [{bar:<{_WIDTH}}] {self._done}/{self._total} {rate} {left:.0f} s left"
        )


@contextmanager
def waiting(label: str, *, stream: TextIO | None = None) -> Iterator[None]:
    """Shows the seconds that have passed while one piece of work lasts that tells no steps."""
    shown = stream or sys.stderr
    if not shown.isatty():
        yield
        return
    over = threading.Event()
    start = time.monotonic()

    def tick() -> None:
        while not over.wait(_TICK):
            shown.write(f"{_ERASE}{label} {time.monotonic() - start:.0f} s")
            shown.flush()

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield
    finally:
        over.set()
        ticking.join()
        shown.write(_ERASE)
        shown.flush()
