"""The steps of a run, each a command that a person could type.

A stage is trained; its checkpoint is grown and laid out for the next stage in one pass; that the
function did not change is verified; the next stage is trained. What runs, what is printed for a
cluster, and what the documentation shows are the same commands.
"""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil

from flmgrow.stages.run_folder import CHECKPOINTS, GROWTH, STAGE, START, RunFolder
from flmgrow.stages.schedule import PlannedStage

PORT = 29500
FIRST_NODE = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'


@dataclass(frozen=True, eq=False)
class Step:
    """One step: ``words`` are its command, without ``flmgrow``; ``done`` looks at the disk.

    ``stage`` is the one that is trained, or that the step makes the start of.
    """

    stage: PlannedStage
    words: tuple[str, ...]
    done: Callable[[], bool]

    @property
    def command(self) -> str:
        """The command as a shell takes it."""
        return shlex.join(("flmgrow", *self.words))

    @property
    def trains(self) -> bool:
        """Whether it runs on all ranks."""
        return self.words[0] == "train"


def steps_of(folder: RunFolder, until: str | None = None) -> Iterator[Step]:
    """Yield the steps of a run in order, up to the training of the stage called ``until``."""
    for planned in folder.stages:
        if planned.target is not None:
            yield from _growth(folder, planned)
        words = ("train", str(folder.of(planned, STAGE)))
        yield Step(planned, words, partial(folder.is_trained, planned))
        if planned.stage.name == until:
            return


def _growth(folder: RunFolder, planned: PlannedStage) -> Iterator[Step]:
    source = str(folder.of(folder.before(planned), CHECKPOINTS))
    start = str(folder.of(planned, START))
    target = ("--to", str(folder.of(planned, GROWTH)))
    form = ("--format", planned.stage.checkpoint.format)
    expand = ("expand", source, start, *target, *form)
    yield Step(planned, expand, partial(folder.is_grown, planned))
    yield Step(planned, ("verify", source, start), partial(folder.is_verified, planned))


def submitted(step: Step, launcher: str, devices: int) -> str:
    """Return the command to submit for ``step`` on nodes with ``devices`` devices each."""
    if not step.trains:
        return step.command
    world = step.stage.stage.layout.world
    # A launcher starts equally many ranks on every node.
    nodes = next(n for n in range(ceil(world / devices), world + 1) if world % n == 0)
    per_node = world // nodes
    module = f"-m flmgrow.trainer {shlex.quote(step.words[1])}"
    if launcher == "srun":
        tasks = f"--nodes={nodes} --ntasks={world} --ntasks-per-node={per_node}"
        where = f"MASTER_ADDR={FIRST_NODE} MASTER_PORT={PORT}"
        return f"{where} srun {tasks} python {module}"
    if nodes == 1:
        return f"torchrun --standalone --nproc-per-node {per_node} {module}"
    meeting = f"--rdzv-backend c10d --rdzv-endpoint $MASTER_ADDR:{PORT}"
    return f"torchrun --nnodes {nodes} --nproc-per-node {per_node} {meeting} {module}"
