"""Ctrl-C as a wish, not an exception: whoever explores looks between two executions, where everything is in order.

The second Ctrl-C means it: it raises KeyboardInterrupt wherever the program is, unless something was found that would
be lost by that.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

__all__ = ["Interrupts"]


class Interrupts:
    """A context in which Ctrl-C is only noted. Elsewhere than in the main thread it does nothing, nor where somebody
    else deals with Ctrl-C."""

    def __init__(self) -> None:
        self.asked = 0
        self.patient = False
        """Whether even the second one is only noted."""
        self._is_ours = False

    def __enter__(self) -> Interrupts:
        self._is_ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._is_ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        if self.asked > 1 and not self.patient:
            raise KeyboardInterrupt
