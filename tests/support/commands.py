"""Running the command line inside the test, and what every refusal must look like."""

import contextlib
import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from damage import contents

from flmgrow.cli.app import run
from flmgrow.surgery.execute import Executor

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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_after(files: int, monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    """Let a run write some files and then happen what ``stop`` does."""
    write: Callable[..., None] = Executor._write
    count = 0

    def write_some(self: Executor, *arguments: Any) -> None:
        nonlocal count
        if count == files:
            stop()
        count += 1
        write(self, *arguments)

    monkeypatch.setattr(Executor, "_write", write_some)
