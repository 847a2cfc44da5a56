"""Running the steps of a run one after the other, in processes of their own.

A step's own command says what went wrong, and its exit code ends the run. A signal is handed on to
it, and the run ends when it has: the trainer saves first.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType

from flmgrow.errors import FlmgrowError, tell
from flmgrow.stages.steps import DIFFERS, Step
from flmgrow.text import COMMAND_LINE
from flmgrow.trainer.ranks.processes import begin_as_child, ended_by_signal, stopping_signals

RunCommand = Callable[[tuple[str, ...]], int]


class StepNotDoneError(FlmgrowError):
    """A step's command ended well, and what it was to make is not there."""


def run_steps(steps: Iterable[Step], launch: RunCommand, say: Callable[[str], None]) -> int:
    """Carry out the steps that are not done yet; return 0, or the exit code of the first to fail.

    Raises:
        StepNotDoneError: The step has ended, and its work is not done.
        BadCheckpointError: For a step whose result cannot be read.
    """
    for step in steps:
        if step.done():
            continue
        say(f"$ {step.command}")
        code = launch(step.words)
        if code == DIFFERS and step.may_differ and step.done():
            say("note: another function, which growth.accept allows: the run goes on")
        elif code:
            return code
        if not step.done():
            raise StepNotDoneError(
                f"stage {step.stage.stage.name}: {step.words[0]} ended, but is not done",
                "run the same command again; if that does not help, look at the stage's folder",
            )
    return 0


def launch(words: tuple[str, ...]) -> int:
    """Run a command of flmgrow's in a process of its own and return its exit code.

    What it has to show goes to stderr, and it ends when this process does. A signal that it cannot
    have told of, since it was just done, is answered by this process.
    """
    asked = 0
    process = subprocess.Popen(
        [sys.executable, "-m", "flmgrow", *words],
        stdout=sys.stderr,
        start_new_session=True,  # a terminal's interrupt is handed on once, here
        preexec_fn=partial(begin_as_child, os.getpid()),
    )

    def hand_on(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = number
        process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in stopping_signals()}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and (code < 0 or code in (0, DIFFERS)):
        signal.raise_signal(asked)
    elif code < 0:
        tell(ended_by_signal(f"flmgrow {words[0]}", -code), COMMAND_LINE)
    return code if code >= 0 else 128 - code
