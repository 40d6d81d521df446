"""TensorRT's logger: what it heard last tells why a call answered None or False."""

import logging
from collections import deque
from functools import cache
from typing import Any

_LINES = 8

logger = logging.getLogger(__name__)


@cache
def listener(trt: Any) -> Any:
    """The logger of all engines, runtimes and builders, which keeps warnings and errors in `heard`.

    trt: the module `tensorrt` or `tensorrt_rtx`. One for the process: TensorRT has a single pointer
    to a logger, set by the first builder or runtime and used until the last one is gone, whatever
    became of the logger meanwhile.
    """
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.INFO,  # as an exception, which tells it, they come too
        trt.ILogger.ERROR: logging.INFO,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,  # of a library that says much
    }

    class Listener(trt.ILogger):  # type: ignore[misc]  # the class is of the module chosen
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.heard: deque[str] = deque(maxlen=_LINES)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity)
            if level is None:  # VERBOSE
                return
            if level > logging.DEBUG:
                self.heard.append(message.strip())
            logger.log(level, "TensorRT: %s", message.strip())

    return Listener()
