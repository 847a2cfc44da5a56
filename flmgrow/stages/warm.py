"""Commands that begin where others have imported: many short trainings, on CPU cores.

A training of a few seconds needs as many for importing torch and megatron-core. So a process that
has imported them, and nothing else, waits aside, and each command is a copy of it (the fork server
of multiprocessing). It has one thread, holds no lock, and has never asked for a GPU, which would be
lost on its copies: commands that use one are to be started as programs of their own.
"""

import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from flmgrow.trainer.ranks.processes import stopping_signals

PRELOADED = "flmgrow.stages.preloaded"


class WarmProcess:
    """A command that was started so; it can be handled as a ``subprocess.Popen``."""

    def __init__(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str], cores: Sequence[int]
    ) -> None:
        """Start ``python -m WORDS`` with its output in ``log``.

        Signals that would stop it wait until it lets them in.
        """
        context = get_context("forkserver")
        context.set_forkserver_preload([PRELOADED])
        given = (tuple(words), str(log), dict(environment), tuple(cores))
        self._process: ForkServerProcess = context.Process(target=_run, args=given)
        resource_tracker.ensure_running()  # its own start lets signals in
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping_signals())
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Wait until it has ended, and return its exit code."""
        self._process.join()
        return self._process.exitcode or 0

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _run(
    words: tuple[str, ...], log: str, environment: Mapping[str, str], cores: Sequence[int]
) -> None:
    """Become the command: what ``python -m`` would do in a process of its own."""
    os.setsid()  # a terminal's interrupt is handed on once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, number)
    os.environ.clear()
    os.environ.update(environment)
    if cores:
        os.sched_setaffinity(0, cores)
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", len(cores) or 1)))
    module, *rest = words
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    """Wait until the process that asked for this one is gone, and go too."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
