"""Runs of a stage on a disk that becomes full, each in a process forked from this one.

``python full_disk_runs.py BASE FOLDER STRIDE``: ``BASE`` is a stage's folder to begin with. For
every STRIDE-th call that takes space there is a run, in a copy of it, in which that call is the
first to fail, and then one on a disk with room again. A line of JSON tells of each: exit codes, and
what was told.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

from full_disk import full_disk

import flmgrow.trainer.training  # noqa: F401 - what takes long is imported once
from flmgrow.trainer import __main__ as trainer

ENOUGH = 10**9


def trained(folder: Path, room: int) -> tuple[int, bool, str]:
    """Train with so much room; return the exit code, whether that was too little, what was told."""
    log = folder / "told"
    child = os.fork()
    if child == 0:
        try:
            _become(folder, room, log)
        except BaseException:
            traceback.print_exc()
        os._exit(70)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told = log.read_text()
    log.unlink()
    met = folder / "met"
    found = met.exists()
    met.unlink(missing_ok=True)
    return code, found, told


def _become(folder: Path, room: int, log: Path) -> None:
    """Be a rank, and end."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["trainer", str(folder / "stage.yaml")]
    with full_disk(folder, room) as disk:
        code = trainer.main()
    if disk.met:
        (folder / "met").touch()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Sweep, until a run meets no full disk."""
    base, place, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    room, met = 0, True
    while met:
        folder = shutil.copytree(base, place / f"{room:03d}")
        code, met, told = trained(folder, room)
        again, _, then = trained(folder, ENOUGH)
        print(json.dumps({"room": room, "met": met, "code": code, "told": told,
                          "again": again, "then": then}), flush=True)  # fmt: skip
        room += stride


if __name__ == "__main__":
    main()
