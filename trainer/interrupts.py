"""Ctrl-C ends a run even where Python drops the exception it raises."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytorch_lightning as pl
import torch


class Interrupts(pl.Callback):
    """Raises KeyboardInterrupt after a batch during which one was lost.

    Python raises it wherever the signal finds it, and drops it inside a destructor or a callback
    from C, of which a training step has many.
    """

    def __init__(self) -> None:
        self._came = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Takes note of interrupts. Does nothing outside the main thread, which alone gets them."""
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(handler):
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._came = True
            handler(number, frame)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: torch.Tensor,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Raises KeyboardInterrupt where one came and the run goes on."""
        if self._came:
            raise KeyboardInterrupt
