"""Work in other processes ends when nobody wants it any more, whatever a worker is at."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

SIZE = 1 << 29
"""Bytes of a result: writing it takes long enough to be killed meanwhile."""


def large(done: str) -> bytes:
    """Return a large result, and leave a mark just before."""
    result = bytes(SIZE)
    Path(done).touch()
    return result


def give_up_after(seconds: float, mark: str) -> None:
    """Begin a result, and lose interest while it is written."""
    from flmgrow.trainer.ranks.processes import working

    with working(large, 2) as submit:
        submit(mark)
        while not Path(mark).exists():
            time.sleep(0.001)
        time.sleep(seconds)
        raise KeyError("nobody wants it")


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_a_worker_that_is_killed_while_it_writes_holds_nobody_up(
    seconds: float, tmp_path: Path
) -> None:
    """Half a result was waited for, for ever."""
    code = (
        f"import test_processes; test_processes.give_up_after({seconds}, {str(tmp_path / 'x')!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, timeout=900,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "nobody wants it" in done.stderr
