"""``torchrun ... -m flmgrow.trainer STAGE.yaml``: one rank of a stage.

Before they have met, all ranks meet the same errors as a rule, and the first one tells of them; one
that another rank meets alone is told by that rank, if nobody has ended the run before. That another
rank has ended is told last: that one knows why.
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flmgrow.errors import FlmgrowError, LostRankError, UsageError, tell
from flmgrow.trainer.ranks.processes import stopping_signals
from flmgrow.trainer.stage.chain import GROWING, TRAINER
from flmgrow.trainer.stage.file import read_stage
from flmgrow.trainer.stage.keys import STAGE_FILE

if TYPE_CHECKING:
    from flmgrow.trainer.live import Growing

PATIENCE = 10.0
"""Seconds that a rank leaves to those who know better to tell of an error; a launcher takes less to
end the ranks once one has failed.
"""

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


STARTED = "start it by flmgrow train, torchrun, or srun with MASTER_ADDR and MASTER_PORT"


def main(growing: Callable[[], "Growing"] | None = None) -> int:
    """Run one rank and return its exit code; ``growing`` makes what grows models in memory."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(
            f"usage: torchrun [...] -m {TRAINER if growing is None else GROWING} STAGE.yaml",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping_signals())  # whoever began us held them
    first = True
    try:
        first = _know_place() == 0
        return _run(Path(sys.argv[1]), growing)
    except FlmgrowError as error:
        if not first or isinstance(error, LostRankError):
            time.sleep(PATIENCE)
        tell(error, STAGE_FILE)
        return error.exit_code


def _run(path: Path, growing: Callable[[], "Growing"] | None) -> int:
    stage = read_stage(path)
    world, wanted = int(os.environ["WORLD_SIZE"]), stage.layout.world
    if world != wanted:
        raise UsageError(
            f"{world} processes, the layout of stage {stage.name} needs {wanted}",
            f"torchrun --nproc-per-node {wanted}, or on several nodes that many in all",
        )
    warnings.filterwarnings("ignore")  # megatron-core's, of what a CPU lacks
    try:
        from flmgrow.trainer.ranks.agreement import is_lost_rank
        from flmgrow.trainer.training import train
    except ModuleNotFoundError as error:
        raise not_installed(error) from None
    try:
        return train(stage, path, None if growing is None else growing())
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise LostRankError(
            f"rank {os.environ['RANK']}: another rank has ended or cannot be reached: {reason}",
            "see what that rank says; the same command resumes",
        ) from None


def not_installed(error: ModuleNotFoundError) -> UsageError:
    """Return what to tell of a package that the trainer lacks, or that megatron-core does: some of
    its versions import more than they ask for.
    """
    package = (error.name or "").partition(".")[0]
    hint = "pip install 'flmgrow[train]'"
    if package != "megatron":
        hint += f"; where that is done, megatron-core imports {package}: install it, or another one"
    return UsageError(f"the package {package} is not installed", hint)


def _know_place() -> int:
    """Learn from srun, if it started this rank and not torchrun, which one it is.

    Returns its number.

    Raises:
        UsageError: For an environment that neither of them makes.
    """
    if "RANK" not in os.environ:
        started = {name: os.environ[n] for name, n in SLURM.items() if n in os.environ}
        many = len(started) == len(SLURM) and started["WORLD_SIZE"] != "1"
        os.environ.update(started if many else ALONE)
    numbers = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    if not all(number.isdecimal() for number in numbers) or int(numbers[0]) >= int(numbers[1]):
        raise UsageError(f"RANK is {numbers[0]!r} and WORLD_SIZE {numbers[1]!r}", STARTED)
    if lost := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UsageError(f"{lost[0]} is not set", STARTED)
    return int(numbers[0])


if __name__ == "__main__":
    sys.exit(main())
