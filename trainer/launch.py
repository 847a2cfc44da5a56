"""A stage needs several processes, and one machine has no cluster's scheduler to start them.

torchrun does it too, but it gives a rank that was asked to stop thirty seconds before it is
killed, which is less than saving may take. Here ranks have all the time they need; if one fails,
the others, which would wait for it for ever, are killed; and none outlives the process that
started it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from flmgrow.trainer.processes import end_with_parent

GRACE = 5.0
"""Seconds that ranks have to end by themselves once one of them has failed."""

_POLL = 0.1


def launch(stage: Path, world: int) -> int:
    """Run ``world`` ranks of a stage file on this machine and return their exit code.

    SIGTERM and SIGINT are handed on, so that the ranks save and stop; a second one kills them.
    """
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world)))
    ranks = [_start(stage, rank, world, environment) for rank in range(world)]
    handlers = {
        number: signal.signal(number, _handing_on(ranks))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        return _wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(
    stage: Path, rank: int, world: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return subprocess.Popen(
        [sys.executable, "-m", "flmgrow.trainer", str(stage)],
        env={**environment, **{name: str(value) for name, value in own.items()}},
        start_new_session=True,  # a terminal's interrupt reaches ranks once, through this process
        preexec_fn=partial(end_with_parent, os.getpid()),
    )


def _handing_on(ranks: Sequence[subprocess.Popen[bytes]]) -> "signal._HANDLER":
    asked = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        for rank in ranks:
            rank.send_signal(signal.SIGKILL if asked else number)
        asked = True

    return handle


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Return the first exit code that is not 0, or 0 when all ranks have ended."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if failed := next((code for code in codes if code), 0):
            end = time.monotonic() + GRACE  # the first rank has told of what all have met
            while ranks[0].poll() is None and time.monotonic() < end:
                time.sleep(_POLL)
            return failed if failed > 0 else 128 - failed
        if all(code == 0 for code in codes):
            return 0
        time.sleep(_POLL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
