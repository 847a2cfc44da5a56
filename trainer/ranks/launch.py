"""Launching the processes of a stage with torchrun, on one machine.

A stage needs several processes, and one machine has no cluster's scheduler to start them. torchrun
does it too, but it gives a rank that was asked to stop thirty seconds before it is killed, which is
less than saving may take. Here ranks have all the time they need; if one fails, the others, which
would wait for it for ever, are killed; and none outlives the process that started it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from flmgrow.errors import FlmgrowError, LostRankError, tell
from flmgrow.storage.cores import usable_cores
from flmgrow.text import COMMAND_LINE
from flmgrow.trainer.ranks.meeting import MeetingPlace
from flmgrow.trainer.ranks.processes import (
    begin_as_child,
    ended_by_signal,
    stopping_signals,
)

GRACE = 5.0
"""Seconds that ranks have to end by themselves once one of them has failed."""

_POLL = 0.1


def launch(stage: Path, world: int, module: str = "flmgrow.trainer") -> int:
    """Run ``world`` ranks of a stage file on this machine and return their exit code.

    ``module`` is what runs a rank.

    SIGTERM, SIGINT and SIGHUP are handed on, so that the ranks save and stop; a second one kills
    them, and the code is that of the first.
    """
    place = MeetingPlace()
    environment = {**os.environ, **place.variables}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // world)))
    # torch's warnings of ranks that are lost come with stack traces; who was lost is told here.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    more, inherited = place.of_rank_0()
    ranks = [_start(module, stage, 0, world, {**environment, **more}, inherited)]
    place.leave()
    ranks += [_start(module, stage, rank, world, environment) for rank in range(1, world)]
    signals = _HandedOn(ranks)
    handlers = {number: signal.signal(number, signals.hand_on) for number in stopping_signals()}
    try:
        code, rank = _first_failure(ranks)
        if code >= 0:
            return code
        if signals.asked:  # the rank could not say so itself
            tell(FlmgrowError("interrupted", "the same command resumes"), COMMAND_LINE)
            return 128 + signals.asked
        tell(ended_by_signal(f"rank {rank}", -code), COMMAND_LINE)
        return 128 - code
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(
    module: str,
    stage: Path,
    rank: int,
    world: int,
    environment: dict[str, str],
    inherited: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return subprocess.Popen(
        [sys.executable, "-m", module, str(stage)],
        env={**environment, **{name: str(value) for name, value in own.items()}},
        pass_fds=inherited,
        start_new_session=True,  # a terminal's interrupt reaches ranks once, through this process
        preexec_fn=partial(begin_as_child, os.getpid()),
    )


class _HandedOn:
    """Signals that the launcher hands on to its ranks; the second one as SIGKILL."""

    def __init__(self, ranks: Sequence[subprocess.Popen[bytes]]) -> None:
        self.asked = 0
        """The first signal, or 0."""
        self._ranks = ranks

    def hand_on(self, number: int, _: FrameType | None) -> None:
        """Send every rank what the launcher got."""
        for rank in self._ranks:
            rank.send_signal(signal.SIGKILL if self.asked else number)
        self.asked = self.asked or number


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Wait for the ranks; return the code of the first that failed, and its number; or zeros.

    A rank that has only lost another is not the first.
    """
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            break
        if all(code == 0 for code in codes):
            return 0, 0
        time.sleep(_POLL)
    end = time.monotonic() + GRACE
    while _more_may_be_told(codes) and time.monotonic() < end:
        time.sleep(_POLL)
        codes = [rank.poll() for rank in ranks]
    failed = [(code, rank) for rank, code in enumerate(codes) if code]
    return next((each for each in failed if each[0] != LostRankError.exit_code), failed[0])


def _more_may_be_told(codes: Sequence[int | None]) -> bool:
    """Whether the code that says what went wrong may be still to come.

    Rank 0 may be telling of what all have met, and a rank that was lost may end after those that
    lost it.
    """
    only_lost = all(code in (None, 0, LostRankError.exit_code) for code in codes)
    return codes[0] is None or (only_lost and None in codes)
