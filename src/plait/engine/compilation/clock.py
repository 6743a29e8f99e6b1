"""Seconds that torch's compiler takes, for the forward passes and for the backward ones, which it compiles when they first run."""

import time
from typing import Any

import torch


class CompileClock:
    """Adds up the seconds in which this process compiles, from `start` to `stop` or the compiler's next reset."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began: float | None = None

    def start(self) -> None:
        """Begin to count."""
        handler = torch._dynamo.callback.callback_handler  # by attribute: importing this file imports no compiler
        handler.register_start_callback(self._begin)
        handler.register_end_callback(self._end)

    def stop(self) -> None:
        """Count no longer."""
        handler = torch._dynamo.callback.callback_handler
        for callbacks, own in ((handler.start_callbacks, self._begin), (handler.end_callbacks, self._end)):
            if own in callbacks:
                callbacks.remove(own)

    def _begin(self, _: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, _: Any) -> None:
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
            self._began = None
