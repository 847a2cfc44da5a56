"""Running the command line inside the test, and what every refusal must look like."""

import contextlib
import io
import re
import time
from dataclasses import dataclass
from pathlib import Path

from damage import contents

from flmgrow.cli.app import run

QUICKLY = 3.0
"""Seconds of processor time in which a refusal must come; it takes a tenth of that alone."""


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


def flmgrow(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def accepted(*arguments: object) -> Outcome:
    outcome = flmgrow(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def check_lines(err: str, pattern: str) -> None:
    """Exactly one error line, which says what ``pattern`` wants, at most one hint, no traceback."""
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(errors) == 1, err
    assert len(hints) <= 1, err
    assert len(errors) + len(hints) + len(notes) == len(lines), err
    assert all(line.isprintable() and len(line) < 1000 for line in lines), err
    assert re.search(pattern, err, re.DOTALL), f"{pattern!r} is not in {err!r}"


def refused(code: int, pattern: str, *arguments: object, place: Path) -> Outcome:
    """Run a command that must be refused so, and leave everything in ``place`` as it is."""
    before, begin = contents(place), time.process_time()
    outcome = flmgrow(*arguments)
    assert time.process_time() - begin < QUICKLY
    assert outcome.code == code, outcome
    assert outcome.out == "", outcome
    check_lines(outcome.err, pattern)
    assert contents(place) == before
    return outcome
