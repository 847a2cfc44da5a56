"""Commands that train, as processes of their own: begun, ended, and compared by what they leave."""

import subprocess
import sys
import time
from pathlib import Path

from stage_runs import environment

from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import StepRecord


def begun(*words: object, log: Path) -> subprocess.Popen[bytes]:
    """Begin a command of flmgrow's; what it tells is added to ``log``."""
    command = [sys.executable, "-m", "flmgrow", *map(str, words)]
    with log.open("ab") as told:
        return subprocess.Popen(command, env=environment(), stdout=told, stderr=told)


def saved(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder of checkpoints."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def losses(out: Path) -> list[tuple[int, float, float]]:
    """Return step, loss and gradient norm of all steps of all stages in ``out``."""
    records = [
        record
        for log in sorted(out.rglob("metrics.jsonl"))
        for record in read_metrics(log)
        if isinstance(record, StepRecord)
    ]
    return [(record.step, record.loss, record.grad_norm) for record in records]


def check_all_ended(out: Path) -> None:
    """Check that nothing runs any more on behalf of a run, or soon does not."""
    end = time.monotonic() + 30
    while left := _processes_of(out):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def _processes_of(out: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if bytes(out) in command:
                found.append(command.replace(b"\0", b" ").decode())
    return found
