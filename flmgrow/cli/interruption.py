"""A signal may arrive at any moment, and the command must end: soon, with its code, in two lines.

What an exception does that is raised between any two instructions depends on where that is: a lock
may stay held by nobody, a library may swallow it, or print its traceback. So the first signal does
two things. It raises :class:`Interrupted`, so that what was begun is tidied up as after a failure;
and it starts a clock. When that has run out, or at a second signal, the process ends on the spot.
That loses nothing: whatever is written stays whole through a kill at any moment (``durable.py``),
and the same command resumes.

Nothing heavy is imported here: until the handlers are there, Python's own answer.
"""

import _thread
import contextlib
import os
import signal
import sys
import time
from types import FrameType

GRACE = 2.0
"""Seconds left to the tidying up: what removes files takes less, what waits for ever takes more."""

RANKS = ("RANK", "SLURM_PROCID")
"""Where launchers tell a process which of several it is, that end the others when one has ended."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = b"\x1b[?25h"
_TOLD = b"error: interrupted\nhint: the same command resumes\n"


class Interrupted(BaseException):
    """A signal arrived; ``code`` is the exit code that says which."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _State:
    """What happened in this process: the code of the first signal, and whether it was told."""

    code = 0
    told = False


def answer_signals() -> None:
    """Let signals that are not ignored end the process, from now on, as described above.

    Of several ranks the first one speaks, so the others are quiet from here on: their launcher ends
    them when it is done, which may be before they have learnt what they are to do.
    """
    _State.told = any(os.environ.get(name, "0").strip("0") for name in RANKS)
    for number in SIGNALS:
        # A shell lets what runs in its background ignore interrupts, nohup a hang-up.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    # A run, and the launcher of ranks, hold them from the processes that they begin until now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def finish(code: int) -> int:
    """Return the exit code of a command that is done, with ``code``, or was interrupted meanwhile.

    A signal ends the process at once from now on.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _end_now)
    if _State.code:  # somebody swallowed the exception
        tell()
    return _State.code or code


def be_quiet() -> None:
    """Say nothing of an interruption: another rank of the same command does."""
    _State.told = True


def interrupted() -> int:
    """Return the exit code of the signal that arrived, or 0."""
    return _State.code


def tell() -> None:
    """Say on stderr, once, that the command was interrupted."""
    if _State.told:
        return
    _State.told = True
    with contextlib.suppress(OSError):  # nobody may be there to read it
        # Not through sys.stderr: what was interrupted may have been writing to it.
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + _TOLD)


def _interrupt(number: int, _: FrameType | None) -> None:
    if _State.code:
        _end_now(number, None)
    _State.code = 128 + number
    sys.unraisablehook = lambda *_: None  # of what is raised where nothing can be raised
    # Not a threading.Thread, which takes locks that what was interrupted may hold.
    _thread.start_new_thread(_end_later, ())
    raise Interrupted(_State.code)


def _end_later() -> None:
    time.sleep(GRACE)
    _end_now(0, None)


def _end_now(number: int, _: FrameType | None) -> None:
    _State.code = _State.code or 128 + number
    tell()
    os._exit(_State.code)
