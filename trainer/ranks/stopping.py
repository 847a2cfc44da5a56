"""Stopping all ranks after the same step when a signal asks for it.

A run that is asked to stop saves first, and all its ranks stop after the same step.
"""

import signal
from types import FrameType

from flmgrow.trainer.ranks.processes import stopping_signals


class Stop:
    """Whether a signal asked the run to stop; a second one takes its usual effect."""

    def __init__(self) -> None:
        self.number = 0
        self._before = {number: signal.signal(number, self._asked) for number in stopping_signals()}

    def _asked(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self.restore()

    def restore(self) -> None:
        """Let signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def signal_of(self, total: float) -> int:
        """Return the signal to stop for, 0 for none; ``total`` adds up those of all ranks.

        Ranks that got none stop as if terminated.
        """
        return (self.number or int(signal.SIGTERM)) if total else 0
