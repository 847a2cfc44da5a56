"""Sharing work among processes that end when the run does.

Work is shared among processes, and each of them must end when the run does, however it ends. A
pool's workers wait for work for ever when their parent is killed, print tracebacks when an
interrupt reaches them, and are waited for when nobody wants their results any more. The pool given
here has none of these habits.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, resource_tracker
from typing import Any, TypeVar

from flmgrow.errors import LostRankError, UsageError
from flmgrow.text import Setting, Text

SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any]


@contextlib.contextmanager
def working(
    function: Callable[[Item], Result], workers: int
) -> Iterator[Callable[[Item], Callable[[], Result]]]:
    """Give what begins to compute ``function`` of an item, and returns what waits for the result.

    With one worker it is computed here, when it is waited for. ``function`` goes to each worker
    once; it, items and results must be picklable.

    Raises:
        UsageError: If a worker dies.
    """
    if workers == 1:
        yield lambda item: lambda: function(item)
        return
    # Not forked: other threads' locks would be copied as they are.
    context = get_context("spawn")
    others = context.active_children()
    begin = (os.getpid(), function)
    with _interrupts_held():  # its locks start Python's own helper
        pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=begin)

    def submit(item: Item) -> Callable[[], Result]:
        with _interrupts_held():
            return pool.submit(_call, item).result

    try:
        yield submit
    except BrokenProcessPool:
        raise UsageError(
            "a worker process died, perhaps for lack of memory",
            Text("fewer ", Setting("workers"), ", then run the same command again: it resumes"),
        ) from None
    except BaseException:
        for process in set(context.active_children()) - set(others):
            process.kill()  # what it is making takes seconds, and nobody wants it now
        _expect_no_more(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _expect_no_more(pool: ProcessPoolExecutor) -> None:
    """Let the end of a pool's results be seen, whose workers were killed.

    One that was killed while it wrote has left half a result, and the pool would wait for the rest
    for ever: it holds the end that workers write to open itself.
    """
    writer = getattr(getattr(pool, "_result_queue", None), "_writer", None)
    if writer is not None:
        writer.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let signals wait; processes that start now never see one: their parent answers it.

    (A terminal sends interrupts and hang-ups to all of them, ``timeout`` sends SIGTERM.)
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        # Python's own helper ignores interrupts, but not a hang-up. (Begun later, it would let
        # interrupts in again.)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, stopping_signals())
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Return the signals after which a run saves and stops; a hang-up only if nohup does not say
    that it is none.
    """
    always = (signal.SIGTERM, signal.SIGINT)
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return always if ignored else (*always, signal.SIGHUP)


def begin_as_child(parent: int) -> None:
    """Prepare this process, before it becomes another program of flmgrow's.

    It ends with its ``parent``; and signals that the parent hands on wait until the program can
    answer them and lets them in: until then Python's own answer to an interrupt is a traceback.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping_signals())
    end_with_parent(parent)


def end_with_parent(parent: int) -> None:
    """Let this process be killed when its ``parent`` dies, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def ended_by_signal(process: str, number: int) -> LostRankError:
    """Return what to tell of a process that a signal has ended, and that nobody asked to end."""
    hint = "the same command resumes"
    if number == signal.SIGKILL:
        hint = f"the kernel does so when memory runs out (see dmesg); {hint}"
    return LostRankError(f"was ended by {signal.Signals(number).name}", hint, where=process)


def _begin(parent: int, function: Callable[[Any], Any]) -> None:
    """Remember a worker's function, and let it end when its parent is killed."""
    global _function
    _function = function
    end_with_parent(parent)


def _call(item: Any) -> Any:
    return _function(item)
