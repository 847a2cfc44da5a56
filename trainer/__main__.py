"""``torchrun ... -m flmgrow.trainer STAGE.yaml``: one rank of a stage.

All ranks meet the same errors, so the first one tells of them. One that another rank meets alone
is told by that rank, if the first has not ended the run before.
"""

import os
import sys
import time
import warnings
from pathlib import Path

from flmgrow.errors import FlmgrowError
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


def main() -> int:
    """Run one rank and return its exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: torchrun [...] -m flmgrow.trainer STAGE.yaml", file=sys.stderr)
        return 2
    if "RANK" not in os.environ:
        os.environ.update(ALONE)
    try:
        stage = read_stage(Path(sys.argv[1]))
        warnings.filterwarnings("ignore")  # megatron-core's, of what a CPU lacks
        from flmgrow.trainer.loop import train

        return train(stage)
    except FlmgrowError as error:
        if os.environ["RANK"] != "0":
            time.sleep(PATIENCE)
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.stdout.flush()
    sys.exit(main())
