"""Ctrl-C and SIGTERM as a flag that is read between steps."""

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, the first Ctrl-C or SIGTERM only sets ``requested``; a second one does what it always did.

    Outside the main thread signals cannot be caught, and nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}
            self.arm()
        return self

    def arm(self) -> None:
        """Take the signals, again if someone else has taken them since."""
        for number in self._previous:
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        self._give_back()
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
