"""``torchrun ... -m flmgrow.trainer STAGE.yaml``: one rank of a stage.

All ranks meet the same errors, so the first one tells of them. One that another rank meets alone
is told by that rank, if the first has not ended the run before.
"""

import os
import sys
import time
import warnings
from pathlib import Path

from flmgrow.errors import FlmgrowError, UsageError
from flmgrow.trainer.stage import read_stage

PATIENCE = 3.0
"""Seconds that other ranks leave to the first one to tell of an error."""

ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What torchrun would say to a single process."""

SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
"""Where srun says what torchrun would; MASTER_ADDR and MASTER_PORT are the user's to say."""


def main() -> int:
    """Run one rank and return its exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: torchrun [...] -m flmgrow.trainer STAGE.yaml", file=sys.stderr)
        return 2
    _know_place()
    try:
        stage = read_stage(Path(sys.argv[1]))
        warnings.filterwarnings("ignore")  # megatron-core's, of what a CPU lacks
        try:
            from flmgrow.trainer.loop import train
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise UsageError(
                f"the package {package} is not installed", "pip install 'flmgrow[train]'"
            ) from None
        return train(stage)
    except FlmgrowError as error:
        if os.environ["RANK"] != "0":
            time.sleep(PATIENCE)
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr, flush=True)
        return error.exit_code


def _know_place() -> None:
    """Learn from srun, if it started this rank and not torchrun, which one it is."""
    if "RANK" in os.environ:
        return
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        os.environ.update({name: os.environ[source] for name, source in SLURM.items()})
    else:
        os.environ.update(ALONE)


if __name__ == "__main__":
    sys.exit(main())
