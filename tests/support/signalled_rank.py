"""A signal that reaches a run of training at a chosen place of it, whatever time that takes.

Run as a program (``python -m signalled_rank STAGE``) it is a rank of that stage. What
``FLMGROW_SIGNALLED`` names in its environment is where the signal comes, to one rank alone.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

VARIABLE = "FLMGROW_SIGNALLED"
SIGNALLED_RANK = "1"
PLACES = {"step": "_step", "save": "_save", "beginning": "_load"}
"""What a run does there: a step, saving it, and being put together to go on from it."""


@contextmanager
def signalled(when: str) -> Iterator[list[int]]:
    """Let SIGTERM come once, in ``step 5``, ``save 5`` or ``beginning 5``.

    Yields a list that is empty until it has come.
    """
    from flmgrow.trainer.loop import TrainingRun

    place, _, number = when.partition(" ")
    came = list[int]()
    original: Callable[..., Any] = getattr(TrainingRun, PLACES[place])

    def struck(run: TrainingRun, *given: Any) -> Any:
        reached = run._progress.iteration + (place == "step")
        if reached == int(number) and not came:
            came.append(reached)
            signal.raise_signal(signal.SIGTERM)
        return original(run, *given)

    with mock.patch.object(TrainingRun, PLACES[place], struck):
        yield came


def main() -> int:
    """Be a rank of a stage, to which the signal comes if it is the one."""
    from flmgrow.trainer.__main__ import main

    if os.environ["RANK"] != SIGNALLED_RANK:
        return main()
    with signalled(os.environ[VARIABLE]) as came:
        code = main()
    assert came, "the signal did not come"
    return code


if __name__ == "__main__":
    sys.exit(main())
